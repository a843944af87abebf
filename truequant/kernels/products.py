"""Evaluation and programs in one call of a compiled kernel: layers and sums of codes, and what is quantized."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from truequant.kernels.levels import compiled
from truequant.numerics import Qparams, fma

_MOST = 1 << 30
"""Below this a bias leaves the sums of the longest layer within int32."""


@dataclass(frozen=True, slots=True)
class Windows:
    """What a convolution does along each spatial axis; padding: zeros before and behind."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True, slots=True)
class Result:
    """`q = clamp(rint(float(sum + bias) * factor) + zero_point, low, high)`; scale: of the values `(q - zero_point) * scale`
    that are wanted, 0.0 for the codes themselves.

    bias: whole numbers `(out,)`. factor: float32 `(out,)` or `(1,)`.
    """

    bias: Tensor
    factor: Tensor
    zero_point: float
    low: float
    high: float
    scale: float = 0.0


def layer_of_codes(x: Tensor, grid: float, weight: Tensor, result: Result, windows: Windows | None = None) -> Tensor | None:
    """float32 of a linear layer, or of a convolution by `windows`; None where no kernel computes it.

    x: float32 on the grid of scale `grid`, or codes of a byte, whose zero point `grid` is. weight: codes of at most 8 bits,
    `(out, in)` or `(out, in / groups, *kernel)`.
    """
    kernel = compiled() if x.is_cpu and not torch.compiler.is_compiling() else None
    if kernel is None or x.numel() == 0 or weight.numel() == 0 or float(result.bias.abs().max()) >= _MOST:
        return None
    numbers = (result.zero_point, result.low, result.high, result.scale)
    factor = result.factor.detach().float().reshape(-1).contiguous()
    operands = (x.contiguous(), grid, weight.to(torch.int8).contiguous(), -result.bias.to(torch.int32), factor, *numbers)
    if windows is None:
        y = kernel.linear_of_codes(*operands)
    else:
        begin, end = (tuple(pair[side] for pair in windows.padding) for side in (0, 1))
        y = kernel.convolution_of_codes(*operands, windows.stride, begin, end, windows.dilation, windows.groups)
    return None if y is NotImplemented else y


def products_of_codes(a: Tensor, b: Tensor) -> Tensor | None:
    """int32 `a @ b` of codes less their zero points, whole numbers carried by any dtype, the axes before the last two alike.

    None where no kernel computes it.
    """
    kernel = compiled() if a.is_cpu and b.is_cpu and not torch.compiler.is_compiling() else None
    if kernel is None or a.dim() != b.dim() or a.shape[:-2] != b.shape[:-2]:
        return None
    sums = kernel.products_of_codes(a.float().contiguous(), b.float().transpose(-2, -1).contiguous())
    return None if sums is NotImplemented else sums


def quantized_values(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor | None:
    """`dequantize(quantize(x))` of one scale, without gradients; None where no kernel computes it."""
    kernel = compiled() if x.is_cpu and not torch.compiler.is_compiling() else None
    if kernel is None or scale.numel() != 1 or x.dtype != torch.float32:
        return None
    y = kernel.quantized_values(x.detach().contiguous(), float(scale), float(zero_point), qmin, qmax)
    return None if y is NotImplemented else y


def sum_of_codes(
    a: Tensor, b: Tensor, a_params: Qparams, b_params: Qparams, y_params: Qparams, low: float, high: float,
    *, reads_codes: bool, writes_codes: bool,
) -> Tensor | None:  # fmt: skip
    """`numerics.add` by onnxruntime's rule, float32, of codes or of values on their grids, as codes or as values. None where no
    kernel computes it.
    """
    kernel = compiled() if a.is_cpu and not torch.compiler.is_compiling() else None
    numbers = (*a_params, *b_params, *y_params)
    if kernel is None or a.shape != b.shape or any(n.numel() != 1 for n in numbers):
        return None
    (sa, za), (sb, zb), (sy, zy) = a_params, b_params, y_params
    ra, rb = sa / sy, sb / sy
    constant = zy - fma(ra, za, rb * zb)
    left, right = ((1.0, 0.0) if reads_codes else (float(s), float(z)) for s, z in (a_params, b_params))
    rule = (*left, float(ra), *right, float(rb), float(constant), float(zy))
    given = (*rule, low, high, 0.0 if writes_codes else float(sy))
    y = kernel.sum_of_codes(a.detach().contiguous(), b.detach().contiguous(), given)
    return None if y is NotImplemented else y
