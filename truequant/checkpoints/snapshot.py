"""A training's whole state at one moment, in memory: what a checkpoint file will hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from truequant.checkpoints import ranks
from truequant.checkpoints.modules import check_module, module_to_json
from truequant.checkpoints.optimizers import optimizer_to_json
from truequant.checkpoints.randomness import random_to_json
from truequant.checkpoints.stateful import library_versions, stateful_to_json
from truequant.checkpoints.stored import FORMAT, STATEFUL, VERSION, digest
from truequant.checkpoints.tree import TreeWriter
from truequant.errors import ArgumentError, ArgumentTypeError
from truequant.files import Json, write_container
from truequant.integer import Int8Model


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The header, without its SHA-256, and the tensors by name."""

    header: dict[str, Json]
    tensors: dict[str, Tensor]

    def copied(self) -> Snapshot:
        """The same with tensors of its own on the CPU: what training does next does not change it."""
        owned = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in self.tensors.items()}
        return Snapshot(self.header, owned)

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write it to one file, atomically; the file's size in bytes."""
        return write_container(path, {**self.header, "sha256": digest(self.header, self.tensors)}, self.tensors)


def snapshot(
    called: str,
    *,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    loader: Any = None,
    ema: Any = None,
    step: int = 0,
    extra: Any = None,
    metric: float | None = None,
    every_rank: bool = False,
) -> Snapshot:
    """The state of what is passed, as `save_checkpoint` keeps it. Tensors are those of the training itself, not copies.

    every_rank: all ranks call this, and the random states and the loader of each of them are kept.
    """
    if isinstance(model, Int8Model):
        raise ArgumentTypeError(f"{called}: an Int8 model trains no more", got="Int8Model", fix="int8.save(path)")
    plain_model = check_module(model, f"{called}: the model")
    if type(step) is not int or step < 0:
        raise ArgumentError(f"{called}: the step is no count", got=repr(step), expected="an int from 0 on")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(
            f"{called}: the optimizer is none of torch", got=type(optimizer).__name__, expected="torch.optim.Optimizer"
        )
    writer = TreeWriter()
    record = module_to_json(plain_model, writer, "model")
    header: dict[str, Json] = {
        "format": FORMAT,
        "version": VERSION,
        "kind": "qat" if record["plans"] or record["quantizers"] else "float",
        "step": step,
        "metric": writer.encode(None if metric is None else float(metric), "metric"),
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
    header["ranks"] = ranks.gathered(plain_model, loader, writer) if every_rank else []
    return Snapshot(header, writer.tensors)
