"""Fake quantization in plain torch: the definition that every faster kernel equals bit for bit.

Values are float32 inside, whatever the dtype of `x`; the result has the dtype of `x`. `scale` and `zero_point` are float32
and broadcast against `x`.

The gradient of a scale is a sum over the elements that share it. On a CPU it has one order, so that every level gives the same
bits: terms are float32, sums float64; the elements of a run (those of a channel that lie one behind the other in memory) are
dealt to sixteen lanes; in each lane neighbours are added, again and again; then lanes likewise, then runs. What is missing
counts as 0. While compiling and on other devices the order is whatever is fastest there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LANES = 16
"""Of the sum that is the gradient of a scale."""


def _kept(passes: Tensor) -> Tensor:
    """A mask as autograd keeps it.

    Inductor stores booleans one by one, which takes many times as long as all else that a quantizer does, and bytes as vectors.
    `minimum` changes nothing: it is an op that its partitioner does not repeat in the backward, so that bytes are kept, and not
    the booleans that they came from.
    """
    if not torch.compiler.is_compiling():
        return passes
    return torch.minimum(torch.where(passes, 1.0, 0.0), torch.ones((), device=passes.device)).to(torch.uint8)


def _masked(kept: Tensor, grad: Tensor) -> Tensor:
    if kept.dtype == torch.bool:
        return torch.where(kept, grad, 0.0)
    # A bound that depends on the gradient, or the comparison would be made in the forward, and its booleans kept.
    return torch.where(kept.float() > torch.where(grad > 0, 0.5, 0.25), grad, 0.0)


class _Clip(torch.autograd.Function):
    """A clip that keeps no more than a mask, for where its result is not kept by what reads it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, ends: bool) -> Tensor:
        y = torch.clamp(x, low, high)
        passes = (x >= low) & (x <= high) if ends else ~(x <= low)
        ctx.save_for_backward(_kept(passes if ends or high == math.inf else passes & ~(x >= high)))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _masked(ctx.saved_tensors[0], grad), None, None, None


class _StraightThrough(torch.autograd.Function):
    """y = (clamp(rint(x / s) + z) - z) * s;  dx = g where the rounded code was not clipped, else 0 (ATen's mask)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, identity: bool) -> Tensor:
        codes = torch.round(x.float() / scale) + zero_point
        clipped = torch.clamp(codes, qmin, qmax)
        if not identity:
            ctx.save_for_backward(_kept(codes == clipped))
        return ((clipped - zero_point) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside = ctx.saved_tensors
        return (_masked(inside[0], grad) if inside else grad), None, None, None, None, None


class _Learned(torch.autograd.Function):
    """Learned Step Size Quantization (Esser et al. 2020), equations 1 to 3, with a zero point.

    dx = g where qmin < x / s + z < qmax (before rounding), else 0
    ds = f * sum g * {rint(x / s) - x / s inside; qmin - z below; qmax - z above}
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, factor: float) -> Tensor:
        codes = torch.clamp(torch.round(x.float() / scale) + zero_point, qmin, qmax) - zero_point
        ctx.save_for_backward(x, scale, zero_point)
        ctx.range, ctx.factor = (qmin, qmax), factor
        return (codes * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        qmin, qmax = ctx.range
        position = x.float() / scale
        inside = (position + zero_point > qmin) & (position + zero_point < qmax)
        codes = torch.clamp(torch.round(position) + zero_point, qmin, qmax) - zero_point
        slope = torch.where(inside, codes - position, codes)
        d_scale = _reduce(grad.float() * slope, scale, x) * ctx.factor
        return torch.where(inside, grad, 0.0), d_scale, None, None, None, None


class _Offset(torch.autograd.Function):
    """LSQ+ (Bhalgat et al. 2020), equations 3 and 4, gradients 5 and 6; z = clamp(rint(-beta / s), qmin, qmax).

    ds = sum g * {rint(u) - u inside; qmin below; qmax above}, dbeta = sum g * {0 inside; 1 outside}, dx = g inside, else 0;
    u = x / s + z, inside: qmin < u < qmax.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, beta: Tensor, qmin: int, qmax: int) -> Tensor:
        zero_point = torch.clamp(torch.round(-beta / scale), qmin, qmax)
        ctx.save_for_backward(x, scale, beta, zero_point)
        ctx.range = (qmin, qmax)
        codes = torch.clamp(torch.round(x.float() / scale) + zero_point, qmin, qmax)
        return ((codes - zero_point) * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, beta, zero_point = ctx.saved_tensors
        qmin, qmax = ctx.range
        position = x.float() / scale + zero_point
        inside = (position > qmin) & (position < qmax)
        codes = torch.clamp(torch.round(x.float() / scale) + zero_point, qmin, qmax)
        g = grad.float()
        d_scale = _reduce(g * torch.where(inside, codes - position, codes), scale, x)
        d_beta = _reduce(torch.where(inside, 0.0, g), beta, x)
        # 0 has a code at any time: an offset at the end of its range moves back, never on.
        outward = ((-beta / scale > qmax) & (d_beta > 0)) | ((-beta / scale < qmin) & (d_beta < 0))
        return torch.where(inside, grad, 0.0), d_scale, torch.where(outward, 0.0, d_beta), None, None


class _Binary(torch.autograd.Function):
    """y = s where x >= 0, else -s.

    dx = g where |rint(x / s)| <= 1, else 0;  ds = f * sum g * {sign - x / s inside; sign outside}.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, factor: float, identity: bool) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.factor, ctx.identity = factor, identity
        return torch.where(x < 0, -scale, scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        position = x.float() / scale
        inside = torch.round(position).abs() <= 1
        sign = torch.where(x < 0, -1.0, 1.0)
        d_scale = None
        if ctx.needs_input_grad[1]:
            d_scale = _reduce(grad.float() * torch.where(inside, sign - position, sign), scale, x) * ctx.factor
        return (grad if ctx.identity else torch.where(inside, grad, 0.0)), d_scale, None, None


def _neighbours(values: Tensor) -> Tensor:
    """Sums along the first axis: neighbours first, again and again."""
    while values.shape[0] > 1:
        if values.shape[0] % 2:
            values = torch.cat([values, torch.zeros_like(values[:1])])
        values = values[0::2] + values[1::2]
    return values[0]


def _mapped() -> bool:
    """Whether a transform (vmap) runs: several gradients at once have no layout of their own."""
    return torch._C._functorch.maybe_current_level() is not None


def _reduce(values: Tensor, like: Tensor, x: Tensor) -> Tensor:
    """Terms of the elements of `x`, summed to the shape of `like` in the order that the module states."""
    axes = [axis - like.dim() + x.dim() for axis, size in enumerate(like.shape) if size > 1]
    if torch.compiler.is_compiling() or not x.numel() or len(axes) > 1 or x.device.type != "cpu" or _mapped():
        return values.sum_to_size(like.shape) if like.dim() else values.sum()
    strides = torch.empty_like(x).stride()
    order = sorted(range(x.dim()), key=lambda axis: (-strides[axis], axis))
    inner = strides[axes[0]] if axes else x.numel()
    channels = x.shape[axes[0]] if axes else 1
    runs = values.permute(order).reshape(-1, channels, inner).double()
    lanes = torch.nn.functional.pad(runs, (0, -inner % LANES)).reshape(*runs.shape[:2], -1, LANES)
    sums = _neighbours(_neighbours(lanes.permute(2, 3, 0, 1)))
    return (_neighbours(sums) + 0.0).float().reshape(like.shape)


def clip(x: Tensor, low: float, high: float, *, ends: bool = False) -> Tensor:
    """`x` between `low` and `high`; `ends`: whether a gradient passes at the ends."""
    result: Tensor = _Clip.apply(x, low, high, ends)  # type: ignore[no-untyped-call]
    return result


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, identity: bool = False) -> Tensor:
    """Fake quantization with the straight-through gradient. NaN passes through."""
    result: Tensor = _StraightThrough.apply(x, scale, zero_point, qmin, qmax, identity)  # type: ignore[no-untyped-call]
    return result


def fake_quantize_learned(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, factor: float) -> Tensor:
    """Fake quantization whose scale receives the LSQ gradient times `factor`."""
    result: Tensor = _Learned.apply(x, scale, zero_point, qmin, qmax, factor)  # type: ignore[no-untyped-call]
    return result


def fake_quantize_offset(x: Tensor, scale: Tensor, beta: Tensor, qmin: int, qmax: int) -> Tensor:
    """Fake quantization whose scale and offset are trained (LSQ+)."""
    result: Tensor = _Offset.apply(x, scale, beta, qmin, qmax)  # type: ignore[no-untyped-call]
    return result


def fake_binarize(x: Tensor, scale: Tensor, *, factor: float = 1.0, identity: bool = False) -> Tensor:
    """Binary weights `{-s, +s}`."""
    result: Tensor = _Binary.apply(x, scale, factor, identity)  # type: ignore[no-untyped-call]
    return result


__all__ = ["clip", "fake_binarize", "fake_quantize", "fake_quantize_learned", "fake_quantize_offset"]
