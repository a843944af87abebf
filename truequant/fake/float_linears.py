"""Linear layers that read floats: integer weights alone, or tokens quantized at run time too.

    weight only:  y = x @ dequantize(w).T + b
    dynamic:      s = clamp(max |x| / qmax, MIN_SCALE, MAX_SCALE) of each token,  q = clamp(rint(x / s), -qmax, qmax)
                  y = float32(sum q * w) * sw * s + b;  of several groups a row: float32(sum over groups, float64) * s + b

Training has the same values up to the order of sums, gradients straight through: no token is ever clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from truequant import kernels
from truequant.fake.clock import local
from truequant.fake.products import product
from truequant.fake.sites import RuntimeSite
from truequant.fake.weights import WeightQuantizer
from truequant.schemes import PerGroup

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def run_linear(site: RuntimeSite, linear: Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run such a layer: `linear(x, weight, bias)` is its sum of products."""
    assert site.weight is not None
    if local.marking or not site.clock.enabled:
        y: Tensor = site.run_layer(linear, x, weight, bias)
        return y
    ready(site, weight)
    if not site.exact():
        return _finish(site, _trained(site, linear, x, weight, bias))
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        y = _evaluated(site, linear, x.float(), weight, None if bias is None else bias.float())
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        floats = _trained(site, linear, x, weight, bias)
        y = y + torch.where(torch.isfinite(floats.detach()), floats - floats.detach(), 0.0).float()  # adds 0
    return _finish(site, y)


def ready(site: RuntimeSite, weight: Tensor) -> None:
    """Read the range of a weight that is passed to a function and seen for the first time."""
    assert site.weight is not None
    if not site.weight.is_calibrated:
        site.weight.initialize(weight)


def _finish(site: RuntimeSite, y: Tensor) -> Tensor:
    y = site.finish(y)
    if local.recorder is not None and site.quantizer is not None:
        local.recorder(f"{site.plan.name}.codes", site.quantizer.codes(y))
    return y


def _trained(site: RuntimeSite, linear: Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """On values, with gradients; float while ranges are observed."""
    assert site.weight is not None
    if site.plan.dynamic is not None and not site.clock.calibrating:
        x = fake_quantize_tokens(x, site.plan.dynamic.qmax)
    return product(linear, x, site.weight(weight), bias)


def _evaluated(site: RuntimeSite, linear: Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the program computes, float32."""
    assert site.weight is not None
    if site.plan.dynamic is None:
        return linear(x.contiguous(), site.weight.values(weight), bias)
    codes, scale = integer_weight(site, weight)
    return kernels.dynamic_linear(x, codes, scale, bias, site.plan.dynamic.qmax)


def integer_weight(site: RuntimeSite, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes `(out, in)`, int8 or float32, and the scales of their groups `(out, groups)`, float32.

    A row is one group where it has one scale.
    """
    assert site.weight is not None
    return integer_rows(site.weight, weight)


def integer_rows(quantizer: WeightQuantizer, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As `integer_weight`, of a weight of two axes."""
    codes, scale = quantizer.integers(weight)
    grouped = isinstance(quantizer.scheme.granularity, PerGroup)
    return codes, scale if grouped else scale.reshape(-1, 1).expand(len(codes), 1)


class _Tokens(torch.autograd.Function):
    """Values on the grid of their own token, of the dtype of `x`; nothing is clipped, and gradients pass everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, qmax: int) -> Tensor:
        return kernels.fake_quantize_tokens(x, qmax)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def fake_quantize_tokens(x: Tensor, qmax: int) -> Tensor:
    """Every token on its own grid, gradient straight through."""
    result: Tensor = _Tokens.apply(x, qmax)  # type: ignore[no-untyped-call]
    return result
