"""What a training step keeps in memory for its backward, as a ratio to the same step in float.

    python benchmarks/memory.py [MODEL …] [--batch N] [--quick] [--record]

saved: bytes of the distinct storages that autograd saves in the forward, counted by `saved_tensors_hooks`; beside parameters:
those of them that are no parameter or buffer of the model. held: bytes that torch's allocator gave out in the forward and did
not get back before the backward, which sees what a compiled kernel keeps, too. peak: the most resident memory of a process
that makes a few steps, beyond what it had before it built the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import warnings

import harness
import torch
import torch.nn.functional as F
from contenders import batch_of, float_model, ours, training_step
from harness import Row
from subjects import SUBJECTS, Subject
from torch import Tensor, nn

KINDS = ("float", "truequant")


def made(kind: str, subject: Subject, x: Tensor) -> nn.Module:
    """The model of a contender."""
    plain = float_model(subject, False)
    return plain if kind == "float" else ours(subject, plain, x)


def saved(model: nn.Module, x: Tensor, y: Tensor) -> tuple[int, int]:
    """Bytes of distinct storages saved in a forward: all, and those that are not of the model's own tensors."""
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # no address is given out twice while all are held
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(x), y)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    loss.backward()
    return sum(storages.values()), sum(size for address, size in storages.items() if address not in own)


def held(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Bytes that a forward allocates and keeps until its backward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss = F.cross_entropy(model(x), y)
    kept = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    loss.backward()
    return int(kept)


def resident() -> int:
    """The most bytes that were resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(kind: str, subject: Subject, batch: int) -> dict[str, int]:
    """What one contender needs, in a process of its own."""
    x, y = batch_of(subject, batch, False)
    before = resident()
    model = made(kind, subject, x)
    step = training_step(model, subject.optimizer(model), x, y)
    for _ in range(3):
        step()
    peak = resident() - before
    everything, beside = saved(model, x, y)
    return {"saved": everything, "beside": beside, "held": held(model, x, y), "peak": peak}


def row_of(subject: Subject, batch: int, given: argparse.Namespace) -> Row:
    """Both contenders, each in a process of its own."""
    row: Row = {"model": subject.name, "batch": batch}
    for kind in KINDS:
        command = [
            sys.executable,
            __file__,
            subject.name,
            "--batch",
            str(batch),
            "--threads",
            str(given.threads),
            "--child",
            kind,
        ]
        row[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return row | {k: row["truequant"][k] / row["float"][k] for k in ("saved", "beside", "held", "peak")}


COLUMNS: harness.Columns = {
    "model": lambda r: r["model"],
    "batch": lambda r: str(r["batch"]),
    "float saves": lambda r: f"{r['float']['saved'] / 1e6:,.1f} MB",
    "saved": lambda r: f"{r['saved']:.3f}",
    "beside parameters": lambda r: f"{r['beside']:.3f}",
    "held": lambda r: f"{r['held']:.3f}",
    "peak": lambda r: f"{r['peak']:.3f}",
}


def main() -> None:
    arguments = harness.parser(__doc__)
    arguments.add_argument("models", nargs="*", help="models; all of them by default")
    arguments.add_argument("--batch", type=int, help="each model's own by default")
    arguments.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    given = harness.options(arguments)
    warnings.simplefilter("ignore")
    names = given.models or (["LeNet", "ResNet-20"] if given.quick else list(SUBJECTS))
    if given.child:
        print(json.dumps(child(given.child, SUBJECTS[names[0]], given.batch)))
        return
    rows = [row_of(SUBJECTS[name], given.batch or SUBJECTS[name].batch, given) for name in names]
    harness.publish("memory", given, rows, ("model", "batch"), COLUMNS, "Memory of a training step, as a ratio to float")


if __name__ == "__main__":
    main()
