"""Trained Quantization Thresholds (Jain et al. 2020): scales that are powers of two, learned.

The parameter `shift` moves `log2 t`; with `s_0` the scale of the initial threshold, `s = 2^ceil(log2 s_0 + shift)`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from truequant import numerics
from truequant.fake.algorithms import lsq
from truequant.fake.algorithms.algorithm import Algorithm
from truequant.schemes import TQT, QuantScheme


def force(initial: Tensor, shift: Tensor) -> Tensor:
    """Equation 4: the smallest power of two that is not below `s_0 * 2^shift`."""
    raw = initial * torch.exp2(torch.clamp(shift.float(), -64.0, 64.0))
    return numerics.power_of_two(torch.clamp(raw, numerics.MIN_SCALE, numerics.MAX_SCALE))


class _Threshold(torch.autograd.Function):
    """Equations 5 to 7: ceil passes gradients straight through, so `ds / dlog2 t = s * ln 2`."""

    @staticmethod
    def forward(ctx: Any, shift: Tensor, initial: Tensor, factor: float) -> Tensor:
        scale = force(initial, shift)
        ctx.save_for_backward(scale)
        ctx.factor = factor
        return scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        scale = ctx.saved_tensors[0]
        slope = scale * math.log(2)
        return (grad * slope if ctx.factor == 0 else grad * slope * ctx.factor / (scale * scale)), None, None


def trainable(scheme: QuantScheme, initial: Tensor, shift: Tensor, elements: int) -> Tensor:
    """The scale in force, its gradient that of equation 7; normalized, divided by `s^2 * sqrt(N * qmax)`."""
    rule = scheme.scale
    assert isinstance(rule, TQT)
    factor = lsq.gradient_scale(scheme, elements) if rule.normalized else 0.0
    result: Tensor = _Threshold.apply(shift, initial, factor)  # type: ignore[no-untyped-call]
    return result


ALGORITHM = Algorithm(fake=lsq.fake, force=force, trainable=trainable)
