"""How the price of a step changes with threads, batch and depth.

    python benchmarks/scaling.py [--quick] [--record]

A ResNet for images of 32 x 32, truequant against float, in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings

import harness
import torch
from contenders import batch_of, contender, float_model, ours
from harness import Row
from subjects import SUBJECTS, residual_network

BATCHES = (1, 4, 16, 64)
DEPTHS = (8, 20, 38, 56)
DEFAULT = {"depth": 20, "batch": 16}


def row_of(along: str, threads: int, batch: int, depth: int, given: argparse.Namespace) -> Row:
    """One combination."""
    torch.set_num_threads(threads)
    subject = dataclasses.replace(SUBJECTS["ResNet-20"], make=lambda: residual_network((depth - 2) // 6))
    x, y = batch_of(subject, batch, False)
    entries = [contender("float", subject, float_model(subject, False), x, y)]
    entries.append(contender("truequant", subject, ours(subject, float_model(subject, False), x), x, y))
    timings = harness.interleaved({e.name: e.step for e in entries}, seconds=given.seconds)
    seconds = {name: t.median for name, t in timings.items()}
    return {
        "along": along, "threads_used": threads, "batch": batch, "depth": depth, "seconds": seconds,
        "ratio": seconds["truequant"] / seconds["float"], "rounds": timings["float"].rounds,
    }  # fmt: skip


def threads_up_to(most: int) -> list[int]:
    """1, 2, 4 … and the most."""
    return sorted({most, *(2**k for k in range(most.bit_length()) if 2**k <= most)})


COLUMNS: harness.Columns = {
    "along": lambda r: r["along"],
    "threads": lambda r: str(r["threads_used"]),
    "batch": lambda r: str(r["batch"]),
    "layers": lambda r: str(r["depth"]),
    "float step": lambda r: harness.milliseconds(r["seconds"]["float"]),
    "truequant step": lambda r: harness.milliseconds(r["seconds"]["truequant"]),
    "ratio": lambda r: harness.ratio(r["ratio"]),
    "added for a layer": lambda r: harness.milliseconds((r["seconds"]["truequant"] - r["seconds"]["float"]) / r["depth"]),
}


def main() -> None:
    arguments = harness.parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=8.0, help="how long to measure a row")
    given = harness.options(arguments)
    if given.quick:
        given.seconds = 2.0
    warnings.simplefilter("ignore")
    few = 2 if given.quick else None
    rows = [row_of("threads", n, DEFAULT["batch"], DEFAULT["depth"], given) for n in threads_up_to(given.threads)]
    rows += [row_of("batch", given.threads, n, DEFAULT["depth"], given) for n in BATCHES[:few]]
    rows += [row_of("depth", given.threads, DEFAULT["batch"], n, given) for n in DEPTHS[:few]]
    key = ("along", "threads_used", "batch", "depth")
    harness.publish("scaling", given, rows, key, COLUMNS, "A step along threads, batch and depth")


if __name__ == "__main__":
    main()
