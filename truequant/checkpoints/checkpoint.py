"""`save_checkpoint` and `load_checkpoint`: a training, whole, in one file without pickle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from truequant.checkpoints.modules import check_module, module_to_json
from truequant.checkpoints.optimizers import optimizer_to_json
from truequant.checkpoints.randomness import random_to_json, set_random
from truequant.checkpoints.restoring import Live, check_parts, restore, unasked
from truequant.checkpoints.stateful import library_versions, stateful_to_json
from truequant.checkpoints.stored import FORMAT, STATEFUL, VERSION, Kind, digest, read_stored
from truequant.checkpoints.tree import TreeWriter
from truequant.errors import ArgumentError, ArgumentTypeError
from truequant.files import Json, write_container
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
    """

    kind: Kind
    step: int = 0
    extra: Any = None
    plan: Plan | None = None
    int8: Int8Model | None = None
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    libraries: tuple[tuple[str, str], ...] = ()

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
    after `optimizer.step()`. Equal states give equal bytes.

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
    if isinstance(model, Int8Model):
        raise ArgumentTypeError("save_checkpoint: an Int8 model trains no more", got="Int8Model", fix="int8.save(path)")
    plain_model = check_module(model, "save_checkpoint: the model")
    if type(step) is not int or step < 0:
        raise ArgumentError("save_checkpoint: the step is no count", got=repr(step), expected="an int from 0 on")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(
            "save_checkpoint: the optimizer is none of torch", got=type(optimizer).__name__, expected="torch.optim.Optimizer"
        )
    writer = TreeWriter()
    record = module_to_json(plain_model, writer, "model")
    header: dict[str, Json] = {
        "format": FORMAT,
        "version": VERSION,
        "kind": "qat" if record["plans"] or record["quantizers"] else "float",
        "step": step,
        "libraries": library_versions(),
        "model": record,
        "random": random_to_json(writer),
        "optimizer": None if optimizer is None else optimizer_to_json(optimizer, plain_model, writer),
        "extra": writer.encode(extra, "extra"),
    }
    for part, value in zip(STATEFUL, (scheduler, scaler, loader), strict=True):
        header[part] = None if value is None else stateful_to_json(value, part, writer)
    if isinstance(ema, nn.Module):
        header["ema"] = module_to_json(check_module(ema, "ema"), writer, "ema")
    else:
        header["ema"] = None if ema is None else stateful_to_json(ema, "ema", writer)
    header["sha256"] = digest(header, writer.tensors)
    return write_container(path, header, writer.tensors)


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
    stored, where = read_stored(path), f"'{path}'"
    live = Live(model, optimizer, ema, {"scheduler": scheduler, "scaler": scaler, "loader": loader})
    check_parts(stored, live, where)
    missing = restore(stored, live, where)
    unused = [*unasked(stored, live), *stored.others]
    if restore_random and model is not None and stored.random is not None and not set_random(stored.random):
        unused.append(f"random states of {len(stored.random.cuda)} CUDA devices")
    plan = None if stored.model is None else stored.model.plan
    libraries = tuple(sorted(stored.libraries.items()))
    return Checkpoint(stored.kind, stored.step, stored.extra, plan, stored.int8, missing, tuple(unused), libraries)
