"""Inference beside float and beside other tools' int8: milliseconds of one call, side by side in one run.

    python benchmarks/inference.py [--models LeNet …] [--batches 1 8 64] [--quick] [--record]

A row is a contender on a model at a batch. Contenders take turns (see `harness.interleaved`). Ratios: the fastest float, the
float model in onnxruntime, and the fastest int8 of another tool, over ours, each the median of the ratios within a round; above
1 ours is faster. CPUs with VNNI and those without have a table each. EXACT: on the measured batch every code of every edge is
the program's. Other tools' int8 has no grade: they promise no codes.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.contenders_inference import CONTENDERS, DEFAULT, FLOAT, made
from benchmarks.full_size import mobilenet_v3, resnet_50
from benchmarks.harness import Row, Timing, interleaved, milliseconds, options, parser, publish, ratio
from benchmarks.subjects import SUBJECTS
from truequant.reports import cpu
from truequant.reports.doctor import has_dot_products

SMALL, LARGE = ("LeNet", "ResNet-20", "MobileNetV2", "ViT"), {"ResNet-50": resnet_50, "MobileNetV3": mobilenet_v3}


def subject(name: str) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A model in evaluation, and what makes a batch of its inputs."""
    torch.manual_seed(0)
    if name in LARGE:
        return LARGE[name]().eval(), lambda batch: torch.randn(batch, 3, 224, 224)
    return SUBJECTS[name].make().eval(), SUBJECTS[name].inputs


def rows_of(name: str, batch: int, threads: int, seconds: float) -> list[Row]:
    """One row for each contender that is installed and can take the model."""
    model, inputs = subject(name)
    x = inputs(batch)
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

    def fastest(kind: str) -> Timing | None:
        return min((t for n, t in timings.items() if kinds[n] == kind), key=lambda t: t.median, default=None)

    others = {"against_float": fastest("float"), "against_int8": fastest("int8"), "against_onnxruntime": timings.get(FLOAT)}
    rows: list[Row] = []
    for n, t in timings.items():
        ratios = {k: o.times_ours(t) if o is not None and kinds[n] == "ours" else None for k, o in others.items()}
        rows.append(
            {"model": name, "batch": batch, "contender": n, "kind": kinds[n], "seconds": t.median, "low": t.low, "high": t.high,
             "rounds": t.rounds, "grade": grades[n], **ratios}
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
    "float in onnxruntime / ours": lambda r: ratio(r["against_onnxruntime"]),
    "best other int8 / ours": lambda r: ratio(r["against_int8"]),
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="*", default=[*SMALL, *LARGE], choices=[*SUBJECTS, *LARGE])
    arguments.add_argument("--batches", nargs="*", type=int, default=[1, 8, 64])
    arguments.add_argument("--seconds", type=float, default=8.0, help="of measurement for each row")
    given = options(arguments)
    warnings.simplefilter("ignore")
    models, batches = (["ResNet-20"], [8]) if given.quick else (given.models, given.batches)
    rows: list[dict[str, Any]] = []
    for name in models:
        for batch in [b for b in batches if b < 64] if name in LARGE else batches:
            rows += rows_of(name, batch, given.threads, 2.0 if given.quick else given.seconds)
    kind = "inference" if has_dot_products(cpu()) else "inference_without_vnni"
    publish(kind, given, rows, ("model", "batch", "contender"), COLUMNS, "Inference, one call; contenders in turns")
    ours = [r for r in rows if r["contender"] == DEFAULT]
    slower = [f"{r['model']}, batch {r['batch']} ({ratio(r['against_float'])})" for r in ours if r["against_float"] < 1]
    print(f"default: slower than the fastest float at {', '.join(slower) or 'nothing'}")


if __name__ == "__main__":
    main()
