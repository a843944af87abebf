"""A prepared model, or a part of it, computed on floats in evaluation with each quantizer replaced by a function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from truequant import numerics
from truequant.calibration.running import evaluating
from truequant.fake import Clock, FakeQuantize, WeightQuantizer

Replacements = Mapping[nn.Module, Callable[..., Tensor]]


@contextlib.contextmanager
def simulated(module: nn.Module, clock: Clock, replacements: Replacements) -> Iterator[None]:
    """In this context quantizers do what `replacements` say, and those that it does not name do nothing."""
    state, changed = clock.state, []
    try:
        for part in module.modules():
            if isinstance(part, (FakeQuantize, WeightQuantizer)):
                part.__dict__["forward"] = replacements.get(part, _same)
                changed.append(part)
        clock.state = "calibrating"  # the path of floats in evaluation
        with evaluating(module):
            yield
    finally:
        clock.state = state
        for part in changed:
            del part.__dict__["forward"]


def _same(x: Tensor, factor: Any = None) -> Tensor:
    return x


def quantizing(quantizer: FakeQuantize | WeightQuantizer) -> Callable[..., Tensor]:
    """What a quantizer does in evaluation: the values of its weight, which must not change meanwhile, are computed once."""
    if isinstance(quantizer, FakeQuantize):
        return quantizer.quantize
    known: list[Tensor] = []

    @torch.no_grad()
    def values(weight: Tensor, factor: Tensor | None = None) -> Tensor:
        if not known:
            scale = numerics.expand(quantizer.scale_of(weight, factor), quantizer.scheme.granularity, tuple(weight.shape))
            known.append(decoded(quantizer, quantizer.codes(weight, factor), scale, factor).to(weight.dtype))
        return known[0]

    return values


def decoded(quantizer: WeightQuantizer, codes: Tensor, scale: Tensor, factor: Tensor | None) -> Tensor:
    """The weight that `codes` stand for, without the BatchNorm's factor: 0 where there is no taking it out."""
    values = codes * scale
    if not quantizer.tied or factor is None:
        return values
    divisor = numerics.along_axis(factor, 0, values.dim())
    return torch.where(divisor.abs() > numerics.MIN_SCALE, values.double() / divisor, 0.0).float()
