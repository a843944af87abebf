"""Codes from values and values from codes.

    quantize:    q = clamp(rint(x / s) + z, qmin, qmax)      true division, rint half to even
    dequantize:  x = (q - z) * s

Codes are carried by float32 tensors that hold integers. `scale` and `zero_point` are float32 tensors that broadcast
against `x`; `along_axis` and `along_groups` give them that shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from truequant.schemes import Granularity, PerChannel, PerGroup

Bound = int | Tensor
"""The lowest or highest code of a result: both bounds of a call are integers, or both are tensors."""


def clamp(codes: Tensor, low: Bound, high: Bound) -> Tensor:
    """`min(max(codes, low), high)`; NaN stays."""
    return torch.clamp(codes, low, high)  # type: ignore[arg-type]


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: Bound, qmax: Bound) -> Tensor:
    """Codes of `x` as float32. NaN becomes code 0 (clamped into the range), as in onnxruntime."""
    codes = torch.round(x.float() / scale) + zero_point
    return clamp(torch.where(torch.isnan(codes), 0.0, codes), qmin, qmax)


def outside(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: Bound, qmax: Bound) -> Tensor:
    """Where `x` rounds to a code below `qmin` or above `qmax`, which clips it."""
    codes = torch.round(x.float() / scale) + zero_point
    return (codes < qmin) | (codes > qmax)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Values of codes, float32."""
    return (codes.float() - zero_point) * scale


def binarize(x: Tensor) -> Tensor:
    """Binary codes: +1 where `x >= 0` or NaN, else -1."""
    return torch.where(x < 0, -1.0, 1.0)


def recover(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The codes, less the zero point, of a dequantized tensor: `rint(x / s)`, exact for float32 `x = (q - z) * s`."""
    return torch.round(x.float() / scale)


def along_axis(values: Tensor, axis: int, rank: int) -> Tensor:
    """`(C,)` as a tensor that broadcasts along `axis` of a tensor of `rank` dimensions; 0-d stays as it is."""
    if values.dim() == 0 or rank == 0:
        return values.reshape(()) if values.numel() == 1 else values
    shape = [1] * rank
    shape[axis] = values.shape[0]
    return values.reshape(shape)


def parameter_shape(granularity: Granularity, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales of a tensor of `shape`: `()`, `(C,)`, or `(rows, groups)` for groups along `(shape[0], -1)`."""
    if isinstance(granularity, PerChannel):
        return (shape[granularity.axis],)
    if isinstance(granularity, PerGroup):
        return (shape[0], -(-_row_length(shape) // granularity.size))
    return ()


def _row_length(shape: tuple[int, ...]) -> int:
    length = 1
    for n in shape[1:]:
        length *= n
    return length


def expand(values: Tensor, granularity: Granularity, shape: tuple[int, ...]) -> Tensor:
    """Scales or zero points of a tensor of `shape`, in a shape that broadcasts against it."""
    if isinstance(granularity, PerChannel):  # not by `match`: torch.compile before 2.9 knows no patterns of classes
        return along_axis(values, granularity.axis, len(shape))
    if isinstance(granularity, PerGroup):
        return values.repeat_interleave(granularity.size, dim=1)[:, : _row_length(shape)].reshape(shape)
    return values
