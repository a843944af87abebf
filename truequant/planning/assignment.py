"""`x[index] = value` as a function that overwrites nothing, of ops that codes can pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_items(x: Tensor, index: Any, value: Any) -> Tensor:
    """A new tensor: `x` after `x[index] = value`.

    A mask and numbers fill, positions and slices concatenate what stays and what comes; anything else (tensors of positions,
    parts of another tensor in steps) is computed on a copy.
    """
    number = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.dim() == 0)
    if isinstance(index, Tensor) and index.dtype == torch.bool and number:
        return x.masked_fill(index.reshape(*index.shape, *(1,) * (x.dim() - index.dim())), value)
    cuts = _cuts(x, index)
    steps = cuts is not None and any(cut.step != 1 for cut, _ in cuts.values())
    if cuts is None or (steps and not number):
        y = x.clone()
        y[index] = value
        return y
    if steps:
        return x.masked_fill(_mask(x, {axis: cut for axis, (cut, _) in cuts.items()}), value)
    regions = [x]
    for axis, (cut, _) in cuts.items():
        regions.append(regions[-1].narrow(axis, cut.start, len(cut)))
    y = _filled(regions[-1], value, [axis for axis, (_, single) in cuts.items() if single])
    for (axis, (cut, _)), around in zip(reversed(cuts.items()), reversed(regions[:-1]), strict=True):
        behind = around.shape[axis] - cut.stop
        parts = [around.narrow(axis, 0, cut.start), y, around.narrow(axis, cut.stop, behind)]
        y = torch.cat([part for part, size in zip(parts, (cut.start, 1, behind), strict=True) if size], axis)
    return y


def _cuts(x: Tensor, index: Any) -> dict[int, tuple[range, bool]] | None:
    """What is written of every axis that is not written as a whole, and whether a number said so. None for other indices."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(i, (Tensor, list, bool)) or i is None for i in items):
        return None
    if any(i is Ellipsis for i in items):
        place = next(n for n, i in enumerate(items) if i is Ellipsis)
        items[place : place + 1] = [slice(None)] * (x.dim() - len(items) + 1)
    cuts = {}
    for axis, item in enumerate(items):
        if isinstance(item, slice):
            if item != slice(None):
                start, stop, step = item.indices(x.shape[axis])
                cuts[axis] = (range(start, max(start, stop), step), False)
        else:
            start = item + x.shape[axis] if item < 0 else item
            cuts[axis] = (range(start, start + 1), True)
    return cuts


def _mask(x: Tensor, cuts: dict[int, range]) -> Tensor:
    """Where all axes are written."""
    mask = torch.ones((1,) * x.dim(), dtype=torch.bool, device=x.device)
    for axis, cut in cuts.items():
        one = torch.tensor([n in cut for n in range(x.shape[axis])], device=x.device)
        mask = mask & one.reshape([-1 if a == axis else 1 for a in range(x.dim())])
    return mask


def _filled(region: Tensor, value: Any, singles: list[int]) -> Tensor:
    """`value` in the shape of a region, of whose axes those named by a number are none of the value's."""
    if not isinstance(value, Tensor):
        return torch.full_like(region, value)
    filling: Tensor = value.to(region.dtype)
    while filling.dim() > region.dim() - len(singles):  # torch takes leading axes of one
        filling = filling.squeeze(0)
    for axis in reversed(singles):
        at = axis - region.dim() + filling.dim() + 1
        filling = filling.unsqueeze(at) if at >= 0 else filling
    return filling if filling.shape == region.shape else torch.zeros_like(region) + filling
