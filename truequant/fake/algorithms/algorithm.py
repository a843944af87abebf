"""`Algorithm`: what a scale rule or a rounding does in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from truequant import kernels, numerics
from truequant.schemes import QuantScheme

Fake = Callable[[Tensor, Tensor, Tensor, QuantScheme], Tensor]


def positive(initial: Tensor, shift: Tensor) -> Tensor:
    """`initial * f(shift)` with f(t) = 1 + t for t >= 0 and exp(t) below: a learned scale, positive whatever an optimizer does.

    It starts at `initial` with slope `initial`, and weight decay on `shift` only pulls it back there.
    """
    t = shift.float()
    factor = torch.where(t < 0, torch.exp(torch.clamp(t, max=0.0)), 1.0 + t)
    return torch.clamp(initial * factor, numerics.MIN_SCALE, numerics.MAX_SCALE)


class _Multiplied(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


def with_gain(value: Tensor, gain: Tensor) -> Tensor:
    """`value`, whose gradient is multiplied by `gain`."""
    result: Tensor = _Multiplied.apply(value, gain)  # type: ignore[no-untyped-call]
    return result


class _Stored(torch.autograd.Function):
    """Scales as a file keeps them, their gradient straight through."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, scheme: QuantScheme) -> Tensor:
        return numerics.stored_scale(scale, scheme)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def stored_scale(scale: Tensor, scheme: QuantScheme) -> Tensor:
    """A learned scale as the scheme's file keeps it, its gradient that of the scale before it was rounded."""
    if scheme.scale_dtype == "float32":
        return scale
    result: Tensor = _Stored.apply(scale, scheme)  # type: ignore[no-untyped-call]
    return result


def straight_through(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme) -> Tensor:
    """Fake quantization of a scale that is not learned (Jacob et al. 2018, equation 12)."""
    identity = scheme.gradient == "identity"
    if scheme.dtype.bits == 1 and scheme.dtype.signed:
        return kernels.fake_binarize(x, scale, identity=identity)
    return kernels.fake_quantize(x, scale, zero_point, scheme.qmin, scheme.qmax, identity=identity)


def range_scale(weight: Tensor, scheme: QuantScheme) -> Tensor | None:
    """None: the scale of a weight is that of the range which its observer finds."""
    return None


def observed(scale: Tensor, scheme: QuantScheme) -> Tensor:
    """The scale of an activation is the one observed."""
    return scale


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Functions of a scale rule, of tensors alone; the quantizers of `truequant.fake` hold their state.

    fake: `(x, scale, zero_point, scheme) -> y` in training, gradients included; the scale broadcasts against x.
    force: `(initial, shift)` to the scale in force, where the scale is learned by a parameter `shift` that starts at 0.
    trainable: the same with the gradient that the paper gives it: `(scheme, initial, shift, elements)`, `elements` being how
        many share a scale.
    weight_scale: `(weight, scheme)` to the scale where it does not come from a range; activation_scale: `(observed, scheme)`.
    codes: `(weight, scale, scheme)` to a weight's codes, where they are not those of its values on the grid.
    """

    fake: Fake = straight_through
    force: Callable[[Tensor, Tensor], Tensor] = positive
    trainable: Callable[[QuantScheme, Tensor, Tensor, int], Tensor] | None = None
    weight_scale: Callable[[Tensor, QuantScheme], Tensor | None] = range_scale
    activation_scale: Callable[[Tensor, QuantScheme], Tensor] = observed
    codes: Callable[[Tensor, Tensor, QuantScheme], Tensor] | None = None
