"""Fake quantization in plain torch: the definition that every faster kernel equals bit for bit.

Values are float32 inside, whatever the dtype of `x`; the result has the dtype of `x`. `scale` and `zero_point` are float32
and broadcast against `x`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _StraightThrough(torch.autograd.Function):
    """y = (clamp(rint(x / s) + z) - z) * s;  dx = g where the rounded code was not clipped, else 0 (ATen's mask)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, identity: bool) -> Tensor:
        codes = torch.round(x.float() / scale) + zero_point
        clipped = torch.clamp(codes, qmin, qmax)
        if not identity:
            ctx.save_for_backward(codes == clipped)
        return ((clipped - zero_point) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside = ctx.saved_tensors
        return (torch.where(inside[0], grad, 0.0) if inside else grad), None, None, None, None, None


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
        d_scale = _reduce(grad.float() * slope, scale) * ctx.factor
        return torch.where(inside, grad, 0.0), d_scale, None, None, None, None


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
            d_scale = _reduce(grad.float() * torch.where(inside, sign - position, sign), scale) * ctx.factor
        return (grad if ctx.identity else torch.where(inside, grad, 0.0)), d_scale, None, None


def _reduce(values: Tensor, like: Tensor) -> Tensor:
    return values.sum_to_size(like.shape) if like.dim() else values.sum()


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, identity: bool = False) -> Tensor:
    """Fake quantization with the straight-through gradient. NaN passes through."""
    result: Tensor = _StraightThrough.apply(x, scale, zero_point, qmin, qmax, identity)  # type: ignore[no-untyped-call]
    return result


def fake_quantize_learned(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, factor: float) -> Tensor:
    """Fake quantization whose scale receives the LSQ gradient times `factor`."""
    result: Tensor = _Learned.apply(x, scale, zero_point, qmin, qmax, factor)  # type: ignore[no-untyped-call]
    return result


def fake_binarize(x: Tensor, scale: Tensor, *, factor: float = 1.0, identity: bool = False) -> Tensor:
    """Binary weights `{-s, +s}`."""
    result: Tensor = _Binary.apply(x, scale, factor, identity)  # type: ignore[no-untyped-call]
    return result


__all__ = ["fake_binarize", "fake_quantize", "fake_quantize_learned"]
