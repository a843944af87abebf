"""Ranges of several processes as one: what any rank has seen counts on all of them.

As in SyncBatchNorm, all ranks must run the same training forwards. Nothing here runs in evaluation or calibration, which a
single rank may do alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from truequant.errors import StateError


def several(group: Any | None = None) -> bool:
    """Whether this process is one of several that train together, in `group` or in all."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1


def everyone() -> Any:
    """The group of all ranks."""
    return distributed.group.WORLD


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is one of FSDP2's: each rank holds a part of it."""
    return isinstance(tensor, Tensor) and type(tensor).__name__ == "DTensor"  # importing its class takes a second


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all ranks; itself where it is not spread over them. All ranks must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def of_this_rank(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, to be written to without gradients: all of it where it is not spread."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _reduce(values: Tensor, operation: Any, group: Any | None = None) -> None:
    """`all_reduce`, in place. StateError where another rank has ended, or does not come in the group's time."""
    try:
        distributed.all_reduce(values, op=operation, group=group)
    except RuntimeError as error:
        raise StateError(
            f"rank {distributed.get_rank()}: what {distributed.get_world_size()} ranks observed cannot be merged",
            got=str(error).splitlines()[0][:300], expected="all ranks alive, in the same training forward",
            fix="look at the rank that failed first; under torchrun --max-restarts training goes on from the last checkpoint",
        ) from error  # fmt: skip


@torch.no_grad()
def widest(minima: Sequence[Tensor], maxima: Sequence[Tensor]) -> None:
    """Replace each minimum and maximum by the least and greatest of all ranks, in one collective call."""
    if not minima or not several():
        return
    # One maximum for both: the least is the negated greatest of what is negated.
    flat = torch.cat([*(-m.reshape(-1) for m in minima), *(m.reshape(-1) for m in maxima)])
    _reduce(flat, distributed.ReduceOp.MAX)
    parts = flat.split([m.numel() for m in (*minima, *maxima)])
    for tensor, part in zip(minima, parts[: len(minima)], strict=True):
        tensor.copy_(-part.reshape(tensor.shape))
    for tensor, part in zip(maxima, parts[len(minima) :], strict=True):
        tensor.copy_(part.reshape(tensor.shape))


@torch.no_grad()
def greatest(values: Tensor) -> Tensor:
    """The elementwise greatest of all ranks."""
    if several():
        values = values.clone()
        _reduce(values, distributed.ReduceOp.MAX)
    return values


@torch.no_grad()
def total(values: Tensor, group: Any | None = None) -> Tensor:
    """The elementwise sum over all ranks of `group`, or over all."""
    if several(group):
        values = values.clone()
        _reduce(values, distributed.ReduceOp.SUM, group)
    return values
