"""Fake quantization of CUDA tensors by the Triton kernels of `device`: the contract of `reference`, and no host ever waits.

Scales and zero points are read on the device; ranges come back as tensors there. Nothing here asks a tensor for its value, so a
whole training step can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from truequant.kernels import device


def _dense(x: Tensor) -> Tensor:
    """`x` itself where its elements fill their memory without gaps, else a copy."""
    strides = sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1)
    expected = 1
    for stride, size in strides:
        if stride != expected:
            return x.contiguous()
        expected *= size
    return x


def _channels(x: Tensor, scale: Tensor) -> tuple[int, int]:
    """How many elements lie between two channels, and how many channels there are; `scale` broadcasts against `x`."""
    axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
    if not axes:
        return 1, 1
    axis = axes[0] - scale.dim() + x.dim()
    return x.stride(axis), x.shape[axis]


def takes(x: Tensor, scale: Tensor) -> bool:
    """Whether the kernels know the dtype, and scales vary along one axis at most."""
    known = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and scale.dtype == torch.float32 and sum(size > 1 for size in scale.shape) <= 1


def _grid(n: int) -> tuple[int]:
    return (-(-n // device.BLOCK),)


def _forward(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, masked: bool, observes: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the packed mask, and the smallest and largest value of each block, NaN where it holds one. `x` is dense."""
    n = x.numel()
    y = torch.empty_like(x)
    mask = x.new_empty((n + 7) // 8 if masked else 0, dtype=torch.uint8)
    low, high = (x.new_empty(_grid(n)[0] if observes else 0, dtype=torch.float32) for _ in range(2))
    if n:
        inner, channels = _channels(x, scale)
        device.forward[_grid(n)](
            x, y, mask, low, high, scale.contiguous(), zero_point.contiguous(), n, inner, channels, float(qmin), float(qmax),
            channels > 1, masked, observes, device.BLOCK,
        )  # fmt: skip
    return y, mask, low, high


class _Masked(torch.autograd.Function):
    """The gradient in the layout of what was quantized, 0 where no bit is set; its own gradient passes where it does."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, mask: Tensor, shape: torch.Size, strides: tuple[int, ...]) -> Tensor:
        ctx.layout = shape, strides
        ctx.save_for_backward(mask)
        if gradient.stride() != strides:
            gradient = torch.empty_strided(shape, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)
        result = torch.empty_like(gradient)
        if gradient.numel():
            device.backward[_grid(gradient.numel())](gradient, mask, result, gradient.numel(), device.BLOCK)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _Masked.apply(gradient, ctx.saved_tensors[0], *ctx.layout), None, None, None  # type: ignore[no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    """`reference._StraightThrough` in one pass, which also says what it saw."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, identity: bool, observes: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = _dense(x)
        y, mask, low, high = _forward(x, scale, zero_point, qmin, qmax, not identity and ctx.needs_input_grad[0], observes)
        ctx.identity, ctx.layout = identity, (x.shape, x.stride())
        ctx.save_for_backward(mask)
        ctx.mark_non_differentiable(low, high)
        return y, low, high

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.identity:
            gradient = _Masked.apply(gradient, ctx.saved_tensors[0], *ctx.layout)  # type: ignore[no-untyped-call]
        return gradient, *(None,) * 6


class _Learned(torch.autograd.Function):
    """`reference._Learned`; the sum that is the gradient of a scale is taken in blocks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, factor: float) -> Tensor:
        x = _dense(x)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.range, ctx.factor = (qmin, qmax), factor
        return _forward(x, scale, zero_point, qmin, qmax, False, False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        n, result = x.numel(), torch.empty_like(x)
        inner, channels = _channels(x, scale)
        if gradient.stride() != x.stride():
            gradient = torch.empty_like(x, dtype=gradient.dtype).copy_(gradient)
        if channels > 1:
            slope = torch.empty_like(x, dtype=torch.float32)
        else:
            slope = x.new_zeros(_grid(n), dtype=torch.float32)
        if n:
            device.learned_backward[_grid(n)](
                gradient, x, result, slope, scale.contiguous(), zero_point.contiguous(), n, inner, channels,
                float(ctx.range[0]), float(ctx.range[1]), channels > 1, device.BLOCK,
            )  # fmt: skip
        total = slope.sum_to_size(scale.shape) if channels > 1 else slope.sum().reshape(scale.shape)
        return result, total * ctx.factor, None, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, identity: bool = False) -> Tensor:
    """As `reference.fake_quantize`."""
    result: Tensor = _StraightThrough.apply(x, scale, zero_point, qmin, qmax, identity, False)[0]  # type: ignore[no-untyped-call]
    return result


def fake_quantize_observed(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, identity: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`fake_quantize`, and the smallest and largest value of `x` for a per-tensor range: an end that is not finite counts as
    not seen and is `+inf` or `-inf`, as in `observers.finite_range`.
    """
    y, low, high = _StraightThrough.apply(x, scale, zero_point, qmin, qmax, identity, True)  # type: ignore[no-untyped-call]
    if not x.numel():
        return y, low.new_full((), torch.inf), low.new_full((), -torch.inf)
    low, high = low.amin(), high.amax()
    return y, torch.where(torch.isfinite(low), low, torch.inf), torch.where(torch.isfinite(high), high, -torch.inf)


def fake_quantize_learned(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, factor: float) -> Tensor:
    """As `reference.fake_quantize_learned`; the gradient of the scale is summed in another order."""
    result: Tensor = _Learned.apply(x, scale, zero_point, qmin, qmax, factor)  # type: ignore[no-untyped-call]
    return result
