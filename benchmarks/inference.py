"""Inference beside float and beside other tools' int8: milliseconds of one call, side by side in one run.

    python benchmarks/inference.py [--models LeNet …] [--batches 1 8 64] [--quick] [--record]

A row is a contender on a model at a batch. Contenders take turns (see `harness.interleaved`). Ratios: the fastest float, and
the fastest int8 of another tool, beside ours; above 1 ours is faster. EXACT: on the measured batch every code of every edge is
the program's. Other tools' int8 has no grade: they promise no codes.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.contenders_inference import CONTENDERS, made
from benchmarks.harness import Row, interleaved, milliseconds, options, parser, publish, ratio
from benchmarks.subjects import SUBJECTS

MODELS = ("LeNet", "ResNet-20", "MobileNetV2", "ViT")


def rows_of(name: str, batch: int, threads: int, seconds: float) -> list[Row]:
    """One row for each contender that is installed and can take the model."""
    torch.manual_seed(0)
    subject = SUBJECTS[name]
    model, x = subject.make().eval(), subject.inputs(batch)
    calls, grades, failed = {}, {}, {}
    for contender in CONTENDERS:
        if not contender.installed:
            continue
        try:
            calls[contender.name], grades[contender.name] = made(contender, model, x, threads)
        except Exception as error:  # a tool that cannot take a model has no figure, and says why
            failed[contender.name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}" if str(error) else "failed"
    timings = interleaved({n: (lambda call=call: call(x)) for n, call in calls.items()}, seconds=seconds, most=2000, warmup=5)
    kinds = {c.name: c.kind for c in CONTENDERS}
    best = {k: min((t.median for n, t in timings.items() if kinds[n] == k), default=None) for k in ("float", "int8", "ours")}
    rows: list[Row] = []
    for n, t in timings.items():
        own = {"float": None, "int8": None}
        if kinds[n] == "ours":
            own = {k: best[k] / t.median if best[k] else None for k in own}
        rows.append(
            {"model": name, "batch": batch, "contender": n, "kind": kinds[n], "seconds": t.median, "low": t.low, "high": t.high,
             "rounds": t.rounds, "grade": grades[n], "against_float": own["float"], "against_int8": own["int8"]}
        )  # fmt: skip
    for n, reason in failed.items():
        print(f"{name}, batch {batch}: {n} left out: {reason}", file=sys.stderr)
    return rows


COLUMNS = {
    "model": lambda r: r["model"],
    "batch": lambda r: str(r["batch"]),
    "contender": lambda r: r["contender"],
    "grade": lambda r: r["grade"] or "–",
    "median": lambda r: milliseconds(r["seconds"]),
    "quartiles": lambda r: f"{1000 * r['low']:.2f} – {1000 * r['high']:.2f}",
    "best float / ours": lambda r: ratio(r["against_float"]),
    "best other int8 / ours": lambda r: ratio(r["against_int8"]),
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="*", default=list(MODELS), choices=list(SUBJECTS))
    arguments.add_argument("--batches", nargs="*", type=int, default=[1, 8, 64])
    arguments.add_argument("--seconds", type=float, default=8.0, help="of measurement for each row")
    given = options(arguments)
    warnings.simplefilter("ignore")
    models, batches = (["ResNet-20"], [8]) if given.quick else (given.models, given.batches)
    rows: list[dict[str, Any]] = []
    for name in models:
        for batch in batches:
            rows += rows_of(name, batch, given.threads, 2.0 if given.quick else given.seconds)
    publish("inference", given, rows, ("model", "batch", "contender"), COLUMNS, "Inference, one call; contenders in turns")


if __name__ == "__main__":
    main()
