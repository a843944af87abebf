"""States of a prepared model: quantizers on and off, ranges frozen and free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from truequant.errors import StateError
from truequant.fake.quantizers import FakeQuantize, WeightQuantizer
from truequant.fake.recording import outermost


def quantizers(model: nn.Module) -> Iterator[tuple[str, FakeQuantize | WeightQuantizer]]:
    """All quantizers of a model by their plan's name."""
    for module in model.modules():
        if isinstance(module, (FakeQuantize, WeightQuantizer)):
            yield module.name, module


@contextlib.contextmanager
def quantizers_off(model: nn.Module) -> Iterator[nn.Module]:
    """In this context the model computes what the float model computes, bit for bit, gradients included."""
    clock = outermost(model).binding.clock
    before, clock.enabled = clock.enabled, False
    try:
        yield model
    finally:
        clock.enabled = before


def freeze(model: nn.Module) -> nn.Module:
    """Commit what was observed and hold all ranges, those of weights too, from now on."""
    clock = outermost(model).binding.clock
    if clock.state == "frozen":
        raise StateError("the ranges are frozen already", fix="tq.unfreeze(model)")
    for _, quantizer in quantizers(model):
        if isinstance(quantizer, FakeQuantize) and quantizer.is_calibrated and quantizer.shift is None:
            quantizer.commit()
    for module in model.modules():
        _hold_weight_ranges(module)
    clock.state = "frozen"
    return model


def _hold_weight_ranges(module: nn.Module) -> None:
    binding = getattr(module, "binding", None)
    if binding is None or binding.leaf is None:
        return
    for site in binding.leaf.values():
        weight = site.own_weight()
        if site.weight is None or weight is None or site.weight.is_held:
            continue
        if site.weight.shift is None or not site.weight.is_calibrated:
            factor = site.normalization().factor() if site.norm is not None else None
            site.weight.initialize(weight, factor)


def unfreeze(model: nn.Module) -> nn.Module:
    """Let ranges follow the data and the weights again."""
    clock = outermost(model).binding.clock
    if clock.state != "frozen":
        raise StateError("the ranges are not frozen", fix="tq.freeze(model) comes first")
    clock.state = "training"
    return model


def forget(model: nn.Module) -> nn.Module:
    """Ranges as `prepare` leaves them: activations have none, those of weights come from the weights. Ranges are free."""
    for _, quantizer in quantizers(model):
        quantizer.reset()
        if quantizer.clock.state == "frozen":
            quantizer.clock.state = "training"
    for module in model.modules():
        _hold_weight_ranges(module)
    return model
