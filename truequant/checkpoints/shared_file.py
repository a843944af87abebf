"""One checkpoint file for all ranks of a training: rank 0 writes it, every rank reads its own part of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from truequant.checkpoints.ranks import world
from truequant.checkpoints.snapshot import Snapshot
from truequant.checkpoints.stored import Stored
from truequant.errors import FileError, TruequantError


def written(taken: Snapshot, path: str | os.PathLike[str]) -> int:
    """Have rank 0 write a snapshot that every rank has taken; its size on all of them. FileError on all where it cannot."""
    rank, count = world()
    size, failure = torch.zeros((), dtype=torch.int64), None
    if rank == 0:
        try:
            size.fill_(taken.write(path))
        except Exception as error:  # raised below, when the others know of it
            failure = error
            size.fill_(-1)
    if count > 1:
        sent = [int(size)]
        distributed.broadcast_object_list(sent, src=0)
        size.fill_(sent[0])
    if failure is not None:
        raise failure
    if int(size) < 0:
        raise FileError(f"'{path}' cannot be written: rank 0 failed to", fix="see the error of rank 0")
    return int(size)


def of_this_rank(stored: Stored) -> Stored:
    """What a file says with this rank's own random states and loader, where it was written by as many ranks as now run.

    By another number of ranks, all take rank 0's loader, and the ranks behind it keep their own random states.
    """
    rank, count = world()
    if count == 1 or not stored.ranks:
        return stored
    if len(stored.ranks) != count:
        return stored if rank == 0 else replace(stored, random=None)
    own, model = stored.ranks[rank], stored.model
    stateful = dict(stored.stateful) if own.loader is None else {**stored.stateful, "loader": own.loader}
    if model is not None:
        model = replace(model, state={name: own.buffers.get(name, value) for name, value in model.state.items()})
    return replace(stored, random=own.random, stateful=stateful, model=model)


def agreed(find: Callable[[], tuple[Path, Stored | None] | None]) -> tuple[Path, Stored | None] | None:
    """What rank 0 finds, on every rank: the file's path, and on rank 0 what it read there."""
    rank, count = world()
    if count == 1:
        return find()
    sent: list[Any] = [None, None]
    found: tuple[Path, Stored | None] | None = None
    if rank == 0:
        try:
            found = find()
            sent = [None if found is None else str(found[0]), None]
        except TruequantError as error:
            sent = [None, error]
    distributed.broadcast_object_list(sent, src=0)
    if sent[1] is not None:
        raise sent[1]
    return found if rank == 0 or sent[0] is None else (Path(sent[0]), None)
