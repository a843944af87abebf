"""Which models reach which step: the table of docs/coverage.md.

    python benchmarks/coverage.py [NAME …] [--markdown PATH] [--json PATH]

A row is prepared, trained for two steps, evaluated, converted, exported and verified in onnxruntime, edge by edge, on fresh
random inputs. Weights are random: this shows that the machinery holds, not how accurate a trained model is.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

import truequant as tq
from tests.models import FAMILIES, Family, leaves
from truequant.integer import IntegerProgram, program_shapes
from truequant.integer.nodes import Conv, Island, Linear
from truequant.reports import versions

STEPS = ("prepared", "trained", "evaluated", "converted", "equal", "onnxruntime")


@dataclass
class Row:
    """reached: the steps that succeeded. integer: the share of the multiply-accumulates of layers that runs in integer."""

    name: str
    kind: str
    reached: tuple[str, ...] = ()
    compared: int = 0
    different: int = 0
    behind: int = 0
    integer: float = 0.0
    islands: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def complete(self) -> bool:
        return len(self.reached) == len(STEPS)


def call(model: Any, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def loss_of(model: nn.Module, family: Family) -> torch.Tensor:
    tensors = [t for t in leaves(call(model, family.inputs())) if t.is_floating_point()]
    return torch.stack([t.square().mean() for t in tensors]).sum()


def row_of(family: Family) -> Row:
    """Take one model as far as it goes."""
    row, started = Row(family.name, family.kind), time.perf_counter()
    try:
        for step in _steps(family, row):
            row.reached = (*row.reached, step)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else ""
        row.note = f"{type(error).__name__}: {first}"[:160]
    row.seconds = round(time.perf_counter() - started, 1)
    return row


def _steps(family: Family, row: Row) -> Iterable[str]:
    torch.manual_seed(0)
    model = family.make()
    model.train()
    loss_of(model, family).backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    qat = tq.prepare(model, family.inputs())
    yield "prepared"
    _train(qat, family, learns)
    yield "trained"
    qat.eval()
    inputs = family.inputs()
    with torch.no_grad():
        expected = leaves(call(qat, inputs))
    yield "evaluated"
    int8 = tq.convert(qat)
    yield "converted"
    found = leaves(call(int8, inputs))
    if not all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)):
        raise AssertionError("the Int8 model's outputs differ from the evaluated model's")
    row.integer, row.islands = integer_share(int8.program), int8.ops().get("Island", 0)
    yield "equal"
    report = tq.verify(qat, int8, [family.inputs() for _ in range(3)], runtimes=("reference", "onnxruntime"))
    row.compared, row.different = report.codes_compared, report.codes_different
    row.behind = report.codes_behind_islands
    yield "onnxruntime"


def _train(qat: nn.Module, family: Family, learns: set[str]) -> None:
    optimizer = torch.optim.SGD(qat.parameters(), 0.001)
    qat.train()
    for _ in range(2):
        optimizer.zero_grad()
        loss = loss_of(qat, family)
        loss.backward()
        optimizer.step()
        if not bool(torch.isfinite(loss)):
            raise AssertionError("the loss is not finite")
    grads = {name: p.grad for name, p in qat.named_parameters() if name in learns}
    silent = [name for name, grad in grads.items() if grad is None or not bool(torch.isfinite(grad).all())]
    if silent:
        raise AssertionError(f"{len(silent)} parameters without a finite gradient: {silent[0]}")


def integer_share(program: IntegerProgram) -> float:
    """Of the multiply-accumulates of layers, those that `export_onnx` has seen in an integer kernel of onnxruntime.

    Products of two activations (attention) are no layers and are not counted.
    """
    shapes = program_shapes(program, {i.name: tuple(2 if n is None else n for n in i.shape) for i in program.inputs})
    integer = total = 0
    for node in program.nodes:
        count = 0
        if isinstance(node, (Conv, Linear)):
            count = math.prod(shapes[node.output]) * math.prod(node.weight.shape[1:])
            integer += count
        elif isinstance(node, Island) and node.op.split(".")[0] in ("conv1d", "conv2d", "conv3d", "linear", "addmm"):
            count = math.prod(shapes[node.output]) * math.prod(node.tensors[0].shape[1:])
        elif isinstance(node, Island) and node.op.startswith(("lstm", "gru", "rnn")) and not node.part:
            count = math.prod(shapes[node.output][:2]) * sum(t.numel() for t in node.tensors if t.dim() == 2)
        total += count
    return integer / total if total else 1.0


def _differ(rows: list[Row]) -> str:
    different, behind = sum(r.different for r in rows), sum(r.behind for r in rows)
    return f"{different} codes differ, {behind} of them because a float island gave another code for equal ones."


def markdown(rows: list[Row]) -> str:
    """The page."""
    lines = [
        "# Coverage",
        "",
        "Small models of many families, prepared by one call, trained for two steps, converted, exported, and verified code by",
        "code in the reference program and in onnxruntime with all optimizations, on random inputs. Each row was written or",
        "taken as its family is, not to suit truequant. `python benchmarks/coverage.py --markdown docs/coverage.md` makes this",
        "page.",
        "",
        "*equal*: the Int8 model's outputs are the evaluated model's, bit for bit. *integer*: share of the",
        "multiply-accumulates of layers whose sums are integers; what stays float is named by `print(tq.plan(…))`.",
        "",
        f"| model | {' | '.join(STEPS)} | codes compared | different | integer |",
        f"|---|{'---|' * len(STEPS)}---:|---:|---:|",
    ]
    for row in rows:
        marks = " | ".join("yes" if step in row.reached else "–" for step in STEPS)
        share = f"{100 * row.integer:.1f} %" if "equal" in row.reached else "–"
        lines.append(f"| {row.name} | {marks} | {row.compared:,} | {row.different} | {share} |")
    failed = [row for row in rows if not row.complete]
    if failed:
        lines += ["", "What stopped a row:", "", *(f"- {row.name}: {row.note}" for row in failed)]
    lines += ["", "Codes can differ only behind a float island, whose sums each runtime orders in its own way."]
    done = sum(row.complete for row in rows)
    lines += ["", f"{done} of {len(rows)} rows reach the last column; {_differ(rows)}"]
    lines += ["", "Made with " + ", ".join(f"{k} {v}" for k, v in versions().items()) + "."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="rows to make; all of them by default")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in options.names or FAMILIES:
        row = row_of(FAMILIES[name])
        rows.append(row)
        steps = f"{len(row.reached)}/{len(STEPS)}"
        print(f"{row.name:34} {steps} {row.compared:>10,} {row.different:>4} {row.integer:6.1%} {row.note}")
    if options.markdown is not None:
        options.markdown.write_text(markdown(rows))
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": [asdict(r) for r in rows], "versions": versions()}, indent=1))
    return 0 if all(row.complete for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
