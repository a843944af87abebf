"""Ternary Weight Networks (Li and Liu 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from truequant import numerics
from truequant.fake.algorithms.algorithm import Algorithm
from truequant.observers import grouped
from truequant.schemes import TWN, QuantScheme


def codes(weight: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
    """Equation 3: the sign of what lies outside `[-delta, delta]`, 0 inside."""
    w = torch.nan_to_num(weight.float())
    return torch.where(w.abs() > _threshold(w, scheme), torch.sign(w), 0.0)


def _threshold(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """The paper's rule of thumb: `delta = 0.7 * E|w|`, in a shape that broadcasts."""
    rule = scheme.scale
    assert isinstance(rule, TWN)
    mean = grouped(weight.abs(), scheme.granularity).nanmean(-1)
    return numerics.expand(rule.threshold * mean, scheme.granularity, tuple(weight.shape))


def weight_scale(weight: Tensor, scheme: QuantScheme) -> Tensor | None:
    """Equation 5: the mean of |w| over the weights outside."""
    w = torch.nan_to_num(weight.float())
    outside = grouped(torch.where(w.abs() > _threshold(w, scheme), w.abs(), 0.0), scheme.granularity)
    return numerics.bounded(outside.nansum(-1) / (outside > 0).sum(-1).clamp(min=1), scheme)


class _Ternary(torch.autograd.Function):
    """`codes * scale`, gradient straight through everywhere."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
        return (codes(weight, scale, scheme) * scale).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None


def fake(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme) -> Tensor:
    """Ternary weights."""
    result: Tensor = _Ternary.apply(x, scale, scheme)  # type: ignore[no-untyped-call]
    return result


ALGORITHM = Algorithm(fake=fake, weight_scale=weight_scale, codes=codes)
