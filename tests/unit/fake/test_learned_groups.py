"""Learned scales of groups of a weight, against autograd of the formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from truequant import kernels
from truequant.fake import WeightQuantizer
from truequant.schemes import LSQ, MSE, PerGroup, QuantScheme, int4


@pytest.mark.parametrize("level", kernels.levels())
def test_learned_scales_of_groups_have_the_gradients_of_the_formula(level: str) -> None:
    """Esser et al. 2020 by autograd: rounding passes straight through, clipping stops, the scale's gradient is scaled."""
    torch.manual_seed(0)
    scheme = QuantScheme(int4, PerGroup(16), scale=LSQ(), observer=MSE())
    quantizer = WeightQuantizer(scheme, (6, 3))
    weight = nn.Parameter(torch.randn(6, 48))
    with kernels.using(level):
        quantizer.initialize(weight)
        with torch.no_grad():
            quantizer.shift.copy_(0.3 * torch.rand(6, 3))  # type: ignore[union-attr]
        gradient = torch.randn(6, 48)
        quantizer(weight).backward(gradient)
    w = weight.detach().double().requires_grad_()
    shift = quantizer.shift.detach().double().requires_grad_()  # type: ignore[union-attr]
    initial = quantizer.scale.double()
    scale = (initial * (1 + shift))[..., None]
    position = torch.clamp(w.reshape(6, 3, 16) / scale, scheme.qmin, scheme.qmax)
    y = (position + (torch.round(position) - position).detach()) * scale
    (y.reshape(6, 48) * gradient.double()).sum().backward()
    gain = 1 / ((16 * scheme.qmax) ** 0.5 * initial.square())
    assert torch.allclose(weight.grad.double(), w.grad, rtol=1e-5, atol=1e-7)  # type: ignore[union-attr,arg-type]
    assert torch.allclose(quantizer.shift.grad.double(), shift.grad * gain, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr,operator]
