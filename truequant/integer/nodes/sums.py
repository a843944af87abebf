"""Exact integer sums of a convolution's windows, in the dtype of the padded input, which holds every partial sum."""

from __future__ import annotations

import itertools
import math

from torch import Tensor

Sizes = tuple[int, ...]


def window_sums(x: Tensor, weight: Tensor, stride: Sizes, dilation: Sizes, groups: int) -> Tensor:
    """`(n, out, *space')`: each window's elements as one column, times the weight as a matrix."""
    for axis, (size, step, gap) in enumerate(zip(weight.shape[2:], stride, dilation, strict=True), start=2):
        x = x.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    rank, batch = weight.dim() - 2, x.shape[0]
    space = x.shape[2 : 2 + rank]
    columns = x.permute(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    columns = columns.reshape(batch, groups, math.prod(weight.shape[1:]), math.prod(space))
    matrix = weight.reshape(groups, -1, columns.shape[2])
    # Without groups a matrix times a batch of matrices: torch then copies neither.
    sums = matrix[0] @ columns[:, 0] if groups == 1 else matrix @ columns
    return sums.reshape(batch, -1, *space)


def tap_sums(x: Tensor, weight: Tensor, stride: Sizes, dilation: Sizes) -> Tensor:
    """The same of a depthwise convolution: one multiplication and addition of whole images for each tap."""
    x = x.repeat_interleave(weight.shape[0] // x.shape[1], dim=1)
    fields = tuple(zip(weight.shape[2:], stride, dilation, x.shape[2:], strict=True))
    space = [(length - gap * (size - 1) - 1) // step + 1 for size, step, gap, length in fields]
    sums = x.new_zeros((*x.shape[:2], *space))
    factors = weight.reshape(weight.shape[0], -1)
    for index, tap in enumerate(itertools.product(*map(range, weight.shape[2:]))):
        at = [slice(None), slice(None)]
        for position, count, (_, step, gap, _) in zip(tap, space, fields, strict=True):
            at.append(slice(position * gap, position * gap + (count - 1) * step + 1, step))
        sums.addcmul_(x[tuple(at)], factors[:, index].reshape(-1, *[1] * len(space)))
    return sums
