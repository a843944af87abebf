"""Which implementation fake-quantizes a tensor: Triton's kernels where it lives on a CUDA device, else plain torch."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor, nn

from truequant.kernels import reference


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


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, identity: bool = False) -> Tensor:
    """Fake quantization with the straight-through gradient. NaN passes through."""
    kernels = on_device(x, scale) or reference
    result: Tensor = kernels.fake_quantize(x, scale, zero_point, qmin, qmax, identity=identity)
    return result


def fake_quantize_learned(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, factor: float) -> Tensor:
    """Fake quantization whose scale receives the LSQ gradient times `factor`."""
    kernels = on_device(x, scale) or reference
    result: Tensor = kernels.fake_quantize_learned(x, scale, zero_point, qmin, qmax, factor=factor)
    return result


def fake_quantize_observed(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, *, identity: bool = False
) -> tuple[Tensor, Tensor, Tensor] | None:
    """`fake_quantize` of one scale, and the smallest and largest finite value seen, in one pass; None where there is none."""
    kernels = on_device(x, scale)
    if kernels is None:
        return None
    result: tuple[Tensor, Tensor, Tensor] = kernels.fake_quantize_observed(x, scale, zero_point, qmin, qmax, identity=identity)
    return result
