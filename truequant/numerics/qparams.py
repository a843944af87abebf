"""Scale and zero point from a range."""

from __future__ import annotations

import torch
from torch import Tensor

from truequant.schemes import QuantScheme

MIN_SCALE = 2.0**-64
MAX_SCALE = 2.0**64
"""Bounds of every scale: inside them `sx * sw / sy` stays finite and normal for any three scales that occur together."""


def power_of_two(scale: Tensor) -> Tensor:
    """The smallest power of two that is not below `scale`, exactly."""
    mantissa, exponent = torch.frexp(scale)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.ldexp(torch.ones_like(scale), exponent)


_SCALE_TYPES = {
    "float16": (torch.float16, 2.0**-24, 2.0**15),  # its smallest number, and its largest power of two
    "bfloat16": (torch.bfloat16, MIN_SCALE, MAX_SCALE),
}
"""The types other than float32 that a scheme's scales may have, and the bounds of scales in them."""


def stored_scale(scale: Tensor, scheme: QuantScheme) -> Tensor:
    """Scales, float32, as the scheme's file keeps them: rounded half to even to its type of scales."""
    if scheme.scale_dtype == "float32":
        return scale
    dtype, least, most = _SCALE_TYPES[scheme.scale_dtype]
    return torch.clamp(scale, least, most).to(dtype).float()


def bounded(scale: Tensor, scheme: QuantScheme) -> Tensor:
    """`scale` in float32, inside the bounds, in the form that the scheme promises."""
    scale = torch.clamp(scale.float(), MIN_SCALE, MAX_SCALE)
    return stored_scale(power_of_two(scale) if scheme.power_of_two else scale, scheme)


def scale_and_zero_point(minimum: Tensor, maximum: Tensor, scheme: QuantScheme) -> tuple[Tensor, Tensor]:
    """Scale and zero point, float32, of a range that is widened to hold 0.

        affine:     s = (max - min) / (qmax - qmin),  z = clamp(rint(qmin - min / s), qmin, qmax)
        symmetric:  s = max(min / qmin, max / qmax) (signed),  s = max / qmax (unsigned),  z = 0

    Non-finite ends are taken as the largest finite float32.
    """
    largest = torch.finfo(torch.float32).max
    low = torch.nan_to_num(minimum.float(), 0.0, largest, -largest).clamp(max=0.0)
    high = torch.nan_to_num(maximum.float(), 0.0, largest, -largest).clamp(min=0.0)
    if scheme.is_symmetric:
        scale = high / scheme.qmax
        if scheme.dtype.signed:
            scale = torch.maximum(low / scheme.qmin, scale)
        scale = bounded(scale, scheme)
        return scale, torch.zeros_like(scale)
    # Each end is divided first: high - low could overflow.
    levels = scheme.qmax - scheme.qmin
    scale = bounded(high / levels - low / levels, scheme)
    return scale, torch.clamp(torch.round(scheme.qmin - low / scale), scheme.qmin, scheme.qmax)


def range_of(scale: Tensor, zero_point: Tensor, scheme: QuantScheme) -> tuple[Tensor, Tensor]:
    """Smallest and largest representable value."""
    return (scheme.qmin - zero_point) * scale, (scheme.qmax - zero_point) * scale
