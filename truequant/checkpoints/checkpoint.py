"""`save_checkpoint` and `load_checkpoint`: a training, whole, in one file without pickle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from truequant.checkpoints.randomness import set_random
from truequant.checkpoints.ranks import sharded
from truequant.checkpoints.restoring import Live, check_parts, restore, unasked
from truequant.checkpoints.shared_file import of_this_rank, written
from truequant.checkpoints.snapshot import snapshot
from truequant.checkpoints.stored import Kind, Stored, read_stored
from truequant.integer import Int8Model
from truequant.planning import Plan
from truequant.schemes import QConfig


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What `load_checkpoint` found.

    kind: "float", "qat", or "int8" (then `int8` is the model and nothing else was in the file).
    missing: names of the model's state that the file lacks: a float checkpoint in a prepared model lacks its quantizers.
    unused: parts of the file that were not asked for, or that this machine has no use for.
    libraries: versions of what wrote the file. Bits are promised to be the same under the same versions.
    metric: what `CheckpointManager` was told of this state's quality.
    """

    kind: Kind
    step: int = 0
    extra: Any = None
    plan: Plan | None = None
    int8: Int8Model | None = None
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    libraries: tuple[tuple[str, str], ...] = ()
    metric: float | None = None

    @property
    def config(self) -> QConfig | None:
        """The config that the plan was made with."""
        return None if self.plan is None else self.plan.config


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    step: int = 0,
    extra: Any = None,
    loader: Any = None,
    ema: Any = None,
) -> int:
    """Write a training's whole state to one safetensors file, atomically, and return its size in bytes.

    Float and prepared models alike. Beside what is passed, the file holds the plan, what quantizers have observed so far,
    every module's mode, and the states of the random generators of Python, NumPy and torch. Gradients are not kept: save
    after `optimizer.step()`. Equal states give equal bytes. A model of several ranks: with DDP one rank calls this, with FSDP2
    all of them do, and rank 0 writes the one file that any number of ranks can load.

    scheduler, scaler, loader: anything with `state_dict` and `load_state_dict`; `loader` may be a `torch.Generator`.
    extra: None, numbers, strings, bytes, tensors, NumPy arrays, and lists, tuples and dicts of them.
    ema: a module (averaged weights), or anything with `state_dict` and `load_state_dict`.
    Raises `ArgumentTypeError` for what cannot be stored without pickle, `FileError` where the file cannot be written; the
    file that was there before is then as it was.

    >>> import os, tempfile, torch
    >>> model, path = torch.nn.Linear(4, 2), os.path.join(tempfile.mkdtemp(), "float.ckpt")
    >>> size = save_checkpoint(path, model=model, step=7)
    >>> load_checkpoint(path, model=torch.nn.Linear(4, 2)).step
    7
    """
    taken = snapshot(
        "save_checkpoint", model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, loader=loader, ema=ema,
        step=step, extra=extra,
    )  # fmt: skip
    return written(taken, path) if sharded(model) else taken.write(path)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    ema: Any = None,
    loader: Any = None,
    restore_random: bool = True,
) -> Checkpoint:
    """Read a float checkpoint, a QAT checkpoint or an Int8 model, restore what is passed, and say what was found.

    A QAT checkpoint needs only the float model, freshly built: the plan inside prepares it in place, and the optimizer
    takes its learned scales in. A float checkpoint (written by `save_checkpoint`, a safetensors file, or a `torch.save`
    state dict, read with `weights_only=True`) also loads into a prepared model, whose ranges are then those of `prepare`.
    An Int8 model comes back as `Checkpoint.int8`. Without `model`, nothing is restored.

    Everything is checked before anything is written, and where something does not fit, all is as it was. Raises
    `FileError` for a file that is damaged, foreign, lies about itself, or lacks a part that is asked for; `ArgumentError`
    and `PlanError` where model or optimizer are not those that were saved; `StateError` for a part of a prepared model.
    """
    live = Live(model, optimizer, ema, {"scheduler": scheduler, "scaler": scaler, "loader": loader})
    return restored(read_stored(path), live, f"'{path}'", restore_random)


def restored(stored: Stored, live: Live, where: str, restore_random: bool) -> Checkpoint:
    """Restore what a file holds into what is alive, and say what was found."""
    check_parts(stored, live, where)
    stored = of_this_rank(stored)
    missing = restore(stored, live, where)
    unused = [*unasked(stored, live), *stored.others]
    if restore_random and live.model is not None and stored.random is not None and not set_random(stored.random):
        unused.append(f"random states of {len(stored.random.cuda)} CUDA devices")
    plan = None if stored.model is None else stored.model.plan
    libraries = tuple(sorted(stored.libraries.items()))
    return Checkpoint(
        stored.kind, stored.step, stored.extra, plan, stored.int8, missing, tuple(unused), libraries, stored.metric
    )
