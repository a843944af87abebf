"""States of a prepared model: quantizers on and off, ranges frozen and free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from truequant.errors import StateError
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.recording import outermost
from truequant.fake.weights import WeightQuantizer


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


def _hold_weight_ranges(module: nn.Module, uncalibrated_only: bool = False) -> None:
    binding = getattr(module, "binding", None)
    if binding is None or binding.leaf is None:
        return
    for site in binding.leaf.values():
        weight = site.own_weight()
        if site.weight is None or weight is None or (uncalibrated_only and site.weight.is_calibrated):
            continue
        if not site.weight.follows_weight() and site.weight.is_held:
            continue
        if site.weight.shift is None or not site.weight.is_calibrated:
            factor = site.normalization().factor() if site.folds else None
            site.weight.initialize(weight, factor)


def unfreeze(model: nn.Module) -> nn.Module:
    """Let ranges follow the data and the weights again."""
    clock = outermost(model).binding.clock
    if clock.state != "frozen":
        raise StateError("the ranges are not frozen", fix="tq.freeze(model) comes first")
    clock.state = "training"
    return model


def set_bits(model: nn.Module, bits: int) -> nn.Module:
    """Codes of at least `bits` bits in every quantizer that is planned narrower; others as planned.

    Where the width changes, the range is found again: a weight's from the weight, an activation's from the next batch that is
    seen in training. `StateError` for frozen ranges that would change.
    """
    clock = outermost(model).binding.clock
    narrower = [q for _, q in quantizers(model) if q.scheme.dtype.bits != max(bits, q.planned.dtype.bits)]
    if narrower and clock.state == "frozen":
        raise StateError("the ranges are frozen, and another width needs others", fix="tq.unfreeze(model), or freeze later")
    if [q for q in narrower if q.set_bits(bits)]:
        for module in model.modules():
            _hold_weight_ranges(module, uncalibrated_only=True)
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
