"""PACT: Parameterized Clipping Activation (Choi et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from truequant import numerics
from truequant.fake.algorithms.algorithm import Algorithm, positive, with_gain
from truequant.schemes import PACT, QuantScheme


class _Clipped(torch.autograd.Function):
    """Equations 1 and 2 with `alpha = s * qmax`, gradient 3: d alpha = sum g where x >= alpha, and nothing for rounding.

    A signed type clips at -alpha too, with the opposite sign. dx = g where qmin * s <= x < alpha.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, qmin: int, qmax: int, decay: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.range, ctx.decay = (qmin, qmax), decay
        return (torch.clamp(torch.round(x.float() / scale), qmin, qmax) * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        qmin, qmax = ctx.range
        position = x.float() / scale
        above, below = position >= qmax, position < qmin
        slope = above.float() - below.float() if qmin < 0 else above.float()
        d_alpha = (grad.float() * slope).sum_to_size(scale.shape) + ctx.decay * scale * qmax  # L2 regularization, section 3
        return torch.where(above | below, 0.0, grad), d_alpha * qmax, None, None, None


def fake(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme) -> Tensor:
    """Fake quantization between 0 (or -alpha) and alpha."""
    rule = scheme.scale
    assert isinstance(rule, PACT)
    result: Tensor = _Clipped.apply(x, scale, scheme.qmin, scheme.qmax, rule.decay)  # type: ignore[no-untyped-call]
    return result


def trainable(scheme: QuantScheme, initial: Tensor, shift: Tensor, elements: int) -> Tensor:
    """The scale in force. A step of `shift` moves alpha by `alpha_0 * step`; the paper scales no gradient."""
    level = initial * scheme.qmax
    return with_gain(positive(initial, shift), 1.0 / (level * level))


def activation_scale(observed: Tensor, scheme: QuantScheme) -> Tensor:
    """From the level that the config gives, else from what was observed."""
    rule = scheme.scale
    assert isinstance(rule, PACT)
    return observed if rule.alpha is None else numerics.bounded(torch.full_like(observed, rule.alpha / scheme.qmax), scheme)


ALGORITHM = Algorithm(fake=fake, trainable=trainable, activation_scale=activation_scale)
