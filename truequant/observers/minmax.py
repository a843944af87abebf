"""Smallest and largest values, committed step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from truequant.schemes import Granularity, PerChannel, PerGroup


def grouped(x: Tensor, granularity: Granularity) -> Tensor:
    """`x` with one row for each scale and the elements that share it on the last axis; groups padded with NaN."""
    match granularity:
        case PerChannel(axis):
            return x.movedim(axis, 0).flatten(1) if x.dim() > 1 else x.reshape(-1, 1)
        case PerGroup(size):
            rows = x.reshape(x.shape[0], -1)
            missing = -rows.shape[1] % size
            rows = torch.nn.functional.pad(rows, (0, missing), value=float("nan"))
            return rows.reshape(rows.shape[0], -1, size)
        case _:
            return x.reshape(-1)


def finite_range(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Smallest and largest value for each scale, float32. An end that is not finite counts as not seen: `+inf` or `-inf`."""
    if x.numel() and x.dim() > 1 and not isinstance(granularity, PerGroup):
        # Whatever its strides: as rows it would be copied, or, compiled, be read in another order than it lies in.
        own = granularity.axis % x.dim() if isinstance(granularity, PerChannel) else None
        axes = [axis for axis in range(x.dim()) if axis != own]
        return _finite(torch.amin(x.float(), axes), torch.amax(x.float(), axes))
    rows = grouped(x, granularity).float()
    if rows.shape[-1] == 0:
        shape = rows.shape[:-1]
        return rows.new_full(shape, torch.inf), rows.new_full(shape, -torch.inf)
    if isinstance(granularity, PerGroup):
        rows = torch.where(torch.isnan(rows), rows[..., :1], rows)  # padding of the last group
    return _finite(*torch.aminmax(rows, dim=-1))


def _finite(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(torch.isfinite(low), low, torch.inf), torch.where(torch.isfinite(high), high, -torch.inf)


def moved(momentum: float, before: Tensor, now: Tensor, first: Tensor) -> Tensor:
    """`momentum * before + (1 - momentum) * now`, `now` where nothing was before."""
    return torch.where(first, now, momentum * before + (1.0 - momentum) * now)
