"""Which implementation fake-quantizes a tensor: Triton's kernels where it lives on a CUDA device, else plain torch."""

from __future__ import annotations

import functools
import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truequant.kernels import reference
from truequant.kernels.levels import compiled

Buffers = dict[str, Tensor | None]
Clip = tuple[int, float, float]
"""What happens to a value before it is quantized: a kind, and the bounds of the last two."""
NONE, RELU, HARDTANH, CLAMP = 0, 1, 2, 3
NO_CLIP: Clip = (NONE, 0.0, 0.0)


def clipped(x: Tensor, clip: Clip) -> Tensor:
    """The clip by ops of torch's; while compiling by one that keeps a mask and nothing else."""
    kind, low, high = clip
    if kind == NONE:
        return x
    if torch.compiler.is_compiling():
        return reference.clip(x, 0.0, math.inf) if kind == RELU else reference.clip(x, low, high, ends=kind == CLAMP)
    if kind == RELU:
        return F.relu(x)
    return F.hardtanh(x, low, high) if kind == HARDTANH else torch.clamp(x, low, high)


@functools.cache
def _cuda() -> ModuleType | None:
    """The Triton kernels; None without Triton, which CUDA builds of torch bring along."""
    try:
        from truequant.kernels import cuda
    except ImportError:
        return None
    return cuda


def on_device(x: Tensor, scale: Tensor) -> ModuleType | None:
    """The Triton kernels where they take `x`; while compiling, Inductor fuses the reference with its neighbours instead."""
    if not x.is_cuda or type(x) not in (Tensor, nn.Parameter) or torch.compiler.is_compiling():
        return None
    found = _cuda()
    return found if found is not None and found.takes(x, scale) else None


def _native(x: Tensor) -> ModuleType | None:
    """The compiled kernels where they may know `x`."""
    if not x.is_cpu or torch.compiler.is_compiling():
        return None
    return compiled()


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, identity: bool = False) -> Tensor:
    """Fake quantization with the straight-through gradient. NaN passes through."""
    if (native := _native(x)) is not None and not scale.requires_grad:
        y = native.fake_quantize_channels(x, scale, zero_point, qmin, qmax, identity)
        if y is not NotImplemented:
            return y  # type: ignore[no-any-return]
    kernels = on_device(x, scale) or reference
    result: Tensor = kernels.fake_quantize(x, scale, zero_point, qmin, qmax, identity=identity)
    return result


def fake_quantize_learned(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, factor: float = 1.0, clip: Clip = NO_CLIP
) -> Tensor:
    """Fake quantization of `x`, or of what a clip makes of it, whose scale receives the LSQ gradient times `factor`."""
    if (native := _native(x)) is not None:
        y = native.fake_quantize_learned(x, scale, zero_point, None, qmin, qmax, factor, *clip)
        if y is not NotImplemented:
            return y  # type: ignore[no-any-return]
    kernels = on_device(x, scale) or reference
    result: Tensor = kernels.fake_quantize_learned(clipped(x, clip), scale, zero_point, qmin, qmax, factor=factor)
    return result


def learned_scale(initial: Tensor, shift: Tensor, gain: float) -> Tensor | None:
    """`positive(initial, shift)` of `truequant.fake.algorithms`, whose gradient is multiplied by `gain / initial**2`; None
    where no kernel computes it.
    """
    if (native := _native(initial)) is None:
        return None
    y = native.learned_scale(initial, shift, gain)
    return None if y is NotImplemented else y


def fake_quantize_offset(x: Tensor, scale: Tensor, beta: Tensor, qmin: int, qmax: int, *, clip: Clip = NO_CLIP) -> Tensor:
    """Fake quantization of `x`, or of what a clip makes of it, whose scale and offset are trained (LSQ+)."""
    if (native := _native(x)) is not None:
        y = native.fake_quantize_learned(x, scale, None, beta, qmin, qmax, 1.0, *clip)
        if y is not NotImplemented:
            return y  # type: ignore[no-any-return]
    return reference.fake_quantize_offset(clipped(x, clip), scale, beta, qmin, qmax)


def fake_binarize(x: Tensor, scale: Tensor, *, factor: float = 1.0, identity: bool = False) -> Tensor:
    """Binary weights `{-s, +s}`."""
    if (native := _native(x)) is not None:
        y = native.fake_binarize(x, scale, factor, identity)
        if y is not NotImplemented:
            return y  # type: ignore[no-any-return]
    return reference.fake_binarize(x, scale, factor=factor, identity=identity)


def quantize_channels(
    x: Tensor, axis: int, buffers: Buffers, observer: Buffers, scheme: tuple[float | bool, ...], *, commits: bool
) -> Tensor | None:
    """Commit, fake-quantize and observe with a range for each index of `axis`; None, and nothing done, where no kernel can.

    buffers, observer: those of the quantizer and its observer. scheme: as `truequant.fake.compiled` has it. commits: whether
    what is pending takes effect first.
    """
    if (native := _native(x)) is None:
        return None
    y = native.quantize_channels(x, axis, buffers, observer, scheme, commits)
    return None if y is NotImplemented else y


def fake_quantize_observed(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, identity: bool = False
) -> tuple[Tensor, Tensor, Tensor] | None:
    """`fake_quantize` of one scale, and the smallest and largest finite value seen, in one pass; None where there is none."""
    kernels = on_device(x, scale)
    if kernels is None:
        return None
    result: tuple[Tensor, Tensor, Tensor] = kernels.fake_quantize_observed(x, scale, zero_point, qmin, qmax, identity=identity)
    return result
