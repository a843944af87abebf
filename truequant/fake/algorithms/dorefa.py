"""DoReFa-Net (Zhou et al. 2016): weights through tanh, activations in [0, 1].

The paper's weights of k bits, `2 q / (2^k - 1) - 1` with q in 0 … 2^k - 1, have a half-integer zero point. Their exact integer
form has the odd codes `2 q - (2^k - 1)`, zero point 0 and the scale `1 / (2^k - 1)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from truequant import kernels, numerics
from truequant.fake.algorithms.algorithm import Algorithm
from truequant.observers import grouped
from truequant.schemes import DoReFa, QuantScheme


def weight_scale(weight: Tensor, scheme: QuantScheme) -> Tensor | None:
    """`max |tanh w| / (2^k - 1)`, or `1 / (2^k - 1)` as in the paper. 1 bit (equation 7): None, for the mean of |w|."""
    rule = scheme.scale
    assert isinstance(rule, DoReFa)
    if scheme.dtype.bits == 1:
        return None
    reach = _reach(weight, scheme)
    return numerics.bounded((reach if rule.keep_magnitude else torch.ones_like(reach)) / scheme.qmax, scheme)


def _reach(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """`max |tanh w|` of the weights that share a scale."""
    return torch.nan_to_num(grouped(torch.tanh(weight.float()), scheme.granularity)).abs().amax(-1)


def codes(weight: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
    """Equation 9: `2 q_k(tanh w / (2 max |tanh w|) + 1/2) - 1`, times 2^k - 1: odd integers. 1 bit: the sign."""
    if scheme.dtype.bits == 1:
        return numerics.binarize(weight)
    t = torch.tanh(weight.float())
    reach = numerics.expand(_reach(weight, scheme), scheme.granularity, tuple(weight.shape))
    unit = t / (2 * torch.clamp(reach, min=numerics.MIN_SCALE)) + 0.5
    q = torch.clamp(torch.round(torch.nan_to_num(unit, 0.5) * scheme.qmax), 0, scheme.qmax)
    return 2 * q - scheme.qmax


class _Tanh(torch.autograd.Function):
    """`codes * scale`; the quantizer passes straight through and max |tanh w| is a constant, so that

    dw = g * (1 - tanh(w)^2) * (scale * (2^k - 1) / max |tanh w|).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
        reach = numerics.expand(_reach(weight, scheme), scheme.granularity, tuple(weight.shape))
        ctx.save_for_backward(weight, scale * scheme.qmax / torch.clamp(reach, min=numerics.MIN_SCALE))
        return (codes(weight, scale, scheme) * scale).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, slope = ctx.saved_tensors
        return (grad * (1 - torch.tanh(weight.float()).square()) * slope).to(grad.dtype), None, None


def fake(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme) -> Tensor:
    """Weights (signed types) by equations 7 and 9, activations by equation 11."""
    if scheme.dtype.signed and scheme.dtype.bits == 1:
        return kernels.fake_binarize(x, scale, identity=True)  # equation 8: the gradient of the sign passes straight through
    if scheme.dtype.signed:
        result: Tensor = _Tanh.apply(x, scale, scheme)  # type: ignore[no-untyped-call]
        return result
    return kernels.fake_quantize(x, scale, zero_point, scheme.qmin, scheme.qmax, identity=scheme.gradient == "identity")


def activation_scale(observed: Tensor, scheme: QuantScheme) -> Tensor:
    """Equation 11: `clip(x, 0, 1)` on 2^k levels."""
    rule = scheme.scale
    assert isinstance(rule, DoReFa)
    return numerics.bounded(torch.full_like(observed, rule.reach / scheme.qmax), scheme)


ALGORITHM = Algorithm(fake=fake, weight_scale=weight_scale, activation_scale=activation_scale, codes=codes)
