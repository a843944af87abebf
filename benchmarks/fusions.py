"""What each fusion of a quantizer with the op before it saves in a training step.

    python benchmarks/fusions.py [MODEL …] [--seconds N] [--quick] [--record]

Float and truequant with all fusions, without one of them, and with none take turns in one process, at each model's default
batch. A column is the ratio to float; what a fusion saves is the difference to "all".
"""

from __future__ import annotations

import warnings

import harness
import torch
from contenders import batch_of, contender, float_model
from harness import Row
from subjects import SUBJECTS, Subject

import truequant as tq
from truequant.schemes import Fusions

FLOAT = "float"
CHOICES = {
    "all": Fusions(),
    "without clamp": Fusions(clamp=False),
    "without add": Fusions(add=False),
    "without norm": Fusions(norm=False),
    "without linear": Fusions(linear=False),
    "none": Fusions(clamp=False, add=False, norm=False, linear=False),
}


def measure(subject: Subject, seconds: float, rounds: int) -> Row:
    """One model."""
    x, y = batch_of(subject, subject.batch, False)
    entries = [contender(FLOAT, subject, float_model(subject, False), x, y)]
    for name, fusions in CHOICES.items():
        qat = tq.prepare(float_model(subject, False), x[:2], tq.QConfig(fusions=fusions))
        with torch.no_grad():
            qat(x)
        entries.append(contender(name, subject, qat, x, y))
    timings = harness.interleaved({e.name: e.step for e in entries}, seconds=seconds, fewest=rounds)
    return {
        "model": subject.name, "batch": subject.batch, "rounds": timings[FLOAT].rounds,
        "seconds": {n: t.median for n, t in timings.items()},
        "ratios": {n: t.median / timings[FLOAT].median for n, t in timings.items()},
    }  # fmt: skip


COLUMNS: harness.Columns = {
    "model": lambda r: r["model"],
    "batch": lambda r: str(r["batch"]),
    "float step": lambda r: harness.milliseconds(r["seconds"][FLOAT]),
} | {name: (lambda r, n=name: harness.ratio(r["ratios"].get(n))) for name in CHOICES}  # type: ignore[misc]


def main() -> None:
    arguments = harness.parser(__doc__)
    arguments.add_argument("models", nargs="*", choices=[*SUBJECTS, []], help="models; those of images by default")
    arguments.add_argument("--seconds", type=float, default=40.0, help="how long to measure a row")
    arguments.add_argument("--rounds", type=int, default=10, help="the fewest rounds of a row")
    given = harness.options(arguments)
    if given.quick:
        given.seconds, given.rounds = 5.0, 5
    warnings.simplefilter("ignore")
    names = given.models or ["LeNet", "ResNet-20", "MobileNetV2", "ViT"]
    rows = [measure(SUBJECTS[name], given.seconds, given.rounds) for name in names]
    harness.publish("fusions", given, rows, ("model", "batch"), COLUMNS, "A training step by its fusions, as a ratio to float")


if __name__ == "__main__":
    main()
