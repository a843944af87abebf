"""How long planning, preparing and converting take, against the size of the model.

    python benchmarks/prepare.py [--quick] [--record]

Planning runs the model once in training and once in evaluation to learn what it calls; `overhead` is planning and preparing
less those two forwards. Converting includes the tracing of the evaluated model and one comparison of the result with it.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import harness
import torch
from harness import Row
from subjects import TextEncoder, residual_network
from torch import Tensor, nn

import truequant as tq

T = TypeVar("T")


def cnn(width: int, blocks: int = 3) -> tuple[nn.Module, Tensor]:
    """A ResNet of 8 x 8 images: of 20 layers, three times as wide at every stage."""
    return residual_network(blocks, (width, 2 * width, 4 * width)), torch.randn(2, 3, 8, 8)


def encoder(depth: int) -> tuple[nn.Module, Tensor]:
    """Layers of BERT's width."""
    return TextEncoder(depth=depth, words=2000), torch.randint(0, 2000, (2, 8))


SIZES: dict[str, dict[str, Callable[[], tuple[nn.Module, Tensor]]]] = {
    "CNN, wider": {f"width {w}": lambda w=w: cnn(w) for w in (16, 64, 128, 240)},  # type: ignore[misc]
    "CNN, deeper": {f"{6 * b + 2} layers": lambda b=b: cnn(16, b) for b in (3, 6, 12, 24)},  # type: ignore[misc]
    "encoder, deeper": {f"{d} blocks": lambda d=d: encoder(d) for d in (1, 3, 6, 14)},  # type: ignore[misc]
}


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """A result and its seconds."""
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def row_of(family: str, size: str, convert: bool) -> Row:
    """One model."""
    torch.manual_seed(0)
    model, x = SIZES[family][size]()
    with torch.no_grad():
        copy.deepcopy(model)(x)  # a first forward chooses kernels
        trained = timed(lambda: copy.deepcopy(model).train()(x))[1] - timed(lambda: copy.deepcopy(model))[1]
        evaluated = timed(lambda: model.eval()(x))[1]
    decided, planning = timed(lambda: tq.plan(model, x))
    qat, preparing = timed(lambda: tq.prepare(model, x, decided))
    row: Row = {
        "family": family, "size": size, "parameters": sum(p.numel() for p in model.parameters()),
        "sites": len(decided.sites), "plan": planning, "prepare": preparing, "forwards": max(0.0, trained) + evaluated,
    }  # fmt: skip
    row["overhead"] = planning + preparing - row["forwards"]
    row["convert"] = None
    if convert:
        with torch.no_grad():
            qat.train()(x)
        _, row["convert"] = timed(lambda: tq.convert(qat.eval()))
    return row


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


COLUMNS: harness.Columns = {
    "family": lambda r: r["family"],
    "size": lambda r: r["size"],
    "parameters": lambda r: f"{r['parameters'] / 1e6:.1f} M",
    "sites": lambda r: str(r["sites"]),
    "plan": lambda r: _seconds(r["plan"]),
    "prepare": lambda r: _seconds(r["prepare"]),
    "of which forwards": lambda r: _seconds(r["forwards"]),
    "overhead": lambda r: _seconds(r["overhead"]),
    "convert": lambda r: _seconds(r["convert"]),
}


def main() -> None:
    arguments = harness.parser(__doc__)
    arguments.add_argument("--family", nargs="*", choices=list(SIZES), default=list(SIZES), help="families; all by default")
    given = harness.options(arguments)
    warnings.simplefilter("ignore")
    rows = []
    for family in given.family:
        for size in list(SIZES[family])[: 2 if given.quick else None]:
            rows.append(row_of(family, size, convert=True))
            print(f"{family}, {size}: overhead {rows[-1]['overhead']:.2f} s", flush=True)
    harness.publish("prepare", given, rows, ("family", "size"), COLUMNS, "Planning, preparing and converting")


if __name__ == "__main__":
    main()
