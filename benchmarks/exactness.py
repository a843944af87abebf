"""The matrix of exactness: models x presets x forms x optimization levels x threads x batches, in onnxruntime.

    python benchmarks/exactness.py [NAME …] [--presets w8a8 …] [--json PATH] [--markdown PATH] [--minutes N]

A cell is a model under a preset: prepared, trained for two steps, converted. Each of its runs compares every code of every
edge, and every bit of every output, of the shipped file with the reference program. Cells that the JSON file holds already
for the same versions are kept, so that the matrix can be made in several runs; `--minutes` stops between two cells.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import truequant as tq
from tests.models import FAMILIES, Family, leaves
from truequant.integer import Int8Model
from truequant.integer.binding import bind, build
from truequant.reports import versions
from truequant.runtimes import onnx_bytes, require_integer_kernels
from truequant.runtimes.onnxruntime.census import same_kernels
from truequant.runtimes.onnxruntime.session import run, session

PRESETS = ("w8a8", "w7a8", "w8a8-pow2", "w4a8")
FORMS = (("qdq", "all"), *(("qoperator", level) for level in ("none", "basic", "extended", "all")))
THREADS = (1, 2)
BATCHES = (1, 7, 64)
RESULTS = Path(__file__).resolve().parent / "results" / "exactness.json"


@dataclass
class Cell:
    """runs: how many were made. different: of each run in which a code or an output differs, how many do, by
    "form/level/threads/batch". islands: float ops of the program, whose sums a runtime orders in its own way.
    """

    name: str
    preset: str
    islands: int = 0
    runs: int = 0
    compared: int = 0
    different: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    @property
    def grade(self) -> str:
        return "error" if self.error else "differs" if self.different else "EXACT"


def inputs_of(family: Family, batch: int) -> Any:
    """Inputs of a batch of any size, from as many batches of two as it takes."""
    made = [family.inputs() for _ in range(-(-batch // 2))]
    if isinstance(made[0], Tensor):
        return torch.cat(made)[:batch]
    if isinstance(made[0], tuple):
        return tuple(torch.cat(parts)[:batch] for parts in zip(*made, strict=True))
    return {key: torch.cat([m[key] for m in made])[:batch] for key in made[0]}


def call(model: Any, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def trained(family: Family, preset: str) -> Int8Model:
    torch.manual_seed(0)
    qat = tq.prepare(family.make(), family.inputs(), preset)
    optimizer = torch.optim.SGD(qat.parameters(), 0.001)
    qat.train()
    for _ in range(2):
        optimizer.zero_grad()
        outputs = [t for t in leaves(call(qat, inputs_of(family, 8))) if t.is_floating_point()]
        torch.stack([t.square().mean() for t in outputs]).sum().backward()
        nn.utils.clip_grad_norm_(qat.parameters(), 1.0)
        optimizer.step()
    return tq.convert(qat)


def cell_of(name: str, preset: str, batches: Iterable[int] = BATCHES, threads: Iterable[int] = THREADS) -> Cell:
    """All runs of one model under one preset."""
    cell, family, started = Cell(name, preset), FAMILIES[name], time.perf_counter()
    try:
        int8 = trained(family, preset)
        cell.islands = int8.ops().get("Island", 0)
        given = [_given(int8, inputs_of(family, n), n) for n in batches]
        for form, level in FORMS:
            _runs(cell, int8, given, form, level, tuple(threads))
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else ""
        cell.error = f"{type(error).__name__}: {first}"[:200]
    cell.seconds = round(time.perf_counter() - started, 1)
    return cell


@dataclass
class Given:
    """A batch, and what the reference program makes of it."""

    batch: int
    feeds: dict[str, Tensor]
    codes: dict[str, Tensor]
    outputs: list[Tensor]


def _given(int8: Int8Model, inputs: Any, batch: int) -> Given:
    named = inputs if isinstance(inputs, dict) else {}
    args = inputs if isinstance(inputs, tuple) else () if named else (inputs,)
    return Given(batch, bind(int8.program, args, named), int8.codes(*args, **named), leaves(int8(*args, **named)))


def _runs(cell: Cell, int8: Int8Model, given: list[Given], form: Any, level: Any, threads: tuple[int, ...]) -> None:
    program = int8.program
    shipped, shown = (onnx_bytes(program, form=form, show_edges=edges) for edges in (False, True))
    same_kernels(*(require_integer_kernels(program, data, level) for data in (shipped, shown)))
    for count in threads:
        edges, outputs = (session(data, threads=count, level=level) for data in (shown, shipped))
        for g in given:
            found = run(edges, g.feeds, list(program.edges))
            different = sum(int((found[n] != codes).sum()) for n, codes in g.codes.items())
            made = leaves(build(program.outputs, run(outputs, g.feeds)))
            different += sum(int((a != b).sum()) for a, b in zip(g.outputs, made, strict=True))
            cell.compared += sum(codes.numel() for codes in g.codes.values())
            cell.runs += 1
            if different:
                cell.different[f"{form}/{level}/{count}/{g.batch}"] = different


def markdown(cells: list[Cell]) -> str:
    """The page."""
    by_name: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_name.setdefault(cell.name, {})[cell.preset] = cell
    whole = {n: row for n, row in by_name.items() if not any(c.islands for c in row.values())}
    runs, compared = sum(c.runs for c in cells), sum(c.compared for c in cells)
    lines = [
        "# Exactness",
        "",
        "Each cell is a model of the coverage table under a preset, trained for two steps, converted and run by onnxruntime in",
        "30 ways: {QDQ form with all optimizations, QOperator form with none, basic, extended, all} x {1, 2 threads} x {batch",
        "1, 7, 64}. Every code of every edge and every bit of every output is compared with the reference program. EXACT: none",
        "differs. `python benchmarks/exactness.py --markdown docs/exactness.md` makes this page.",
        "",
        f"{len(by_name)} models, {runs:,} runs, {compared:,} codes compared. Of {len(whole)} models whose program is integer"
        f" from end to end, {sum(all(c.grade == 'EXACT' for c in r.values()) for r in whole.values())} are EXACT in every run.",
        "",
        "| model | float ops | " + " | ".join(PRESETS) + " |",
        f"|---|---:|{'---|' * len(PRESETS)}",
    ]
    for name, row in by_name.items():
        islands = max(c.islands for c in row.values())
        lines.append(f"| {name} | {islands or ''} | " + " | ".join(_text(row.get(p)) for p in PRESETS) + " |")
    broken = [c for c in cells if c.error]
    if broken:
        lines += ["", "What stopped a cell:", "", *(f"- {c.name}, {c.preset}: {c.error}" for c in broken)]
    lines += [
        "",
        "Behind a float op (softmax, recurrence …) codes may differ, because each runtime orders its sums in its own way.",
        "",
        "OpenVINO in its own form, with VNNI and without, is compared in [runtimes.md](runtimes.md#openvino).",
        "",
        "Made with " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    if cell.grade != "differs":
        return cell.grade
    return f"{len(cell.different)} of {cell.runs} runs, at most {max(cell.different.values())} codes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models; those of the coverage table by default")
    parser.add_argument("--presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.monotonic()
    stored = json.loads(options.json.read_text()) if options.json.exists() else {}
    done = (
        {(c["name"], c["preset"]): Cell(**c) for c in stored.get("cells", [])} if stored.get("versions") == versions() else {}
    )
    for name, preset in itertools.product(options.names or FAMILIES, options.presets):
        if time.monotonic() - started > 60 * options.minutes:
            break
        if (name, preset) in done and not done[name, preset].error:
            continue
        done[name, preset] = cell = cell_of(name, preset)
        print(
            f"{name:34} {preset:10} {cell.grade:8} {cell.runs:3} {cell.compared:>12,} {cell.seconds:6} s {cell.error}",
            flush=True,
        )
        order = {key: i for i, key in enumerate(itertools.product(FAMILIES, PRESETS))}
        cells = [done[key] for key in sorted(done, key=lambda k: order.get(k, len(order)))]
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"versions": versions(), "cells": [asdict(c) for c in cells]}, indent=1) + "\n")
        if options.markdown is not None:
            options.markdown.write_text(markdown(cells))
    return 1 if any(c.error or (c.different and not c.islands) for c in done.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
