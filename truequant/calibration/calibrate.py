"""`calibrate`: ranges from data, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from truequant.errors import ArgumentError, StateError
from truequant.fake import FakeQuantize, outermost, quantizers
from truequant.planning import arguments_of


def calibrate(model: nn.Module, batches: Iterable[Any], *, inputs: Callable[[Any], Any] | None = None) -> nn.Module:
    """Set all activation ranges from `batches`, as the float model produces them.

    Runs without gradients, with BatchNorm and dropout in evaluation; weights, statistics and modes stay as they are.
    Ranges observed before are forgotten.

    batches: items, each a tensor, a tuple of positional inputs, or a dict of keyword inputs; of an `(x, y)` item a model
        with one input takes `x`. `inputs` maps an item to the inputs where that is not so.
    Raises `StateError` for a frozen model and `ArgumentError` for no batches.
    """
    clock = (root := outermost(model)).binding.clock
    count_inputs = 1 if root.binding.plan is None else len(root.binding.plan.inputs)
    if clock.state == "frozen":
        raise StateError("the ranges are frozen", fix="tq.unfreeze(model) before calibrating")
    activations = [q for _, q in quantizers(model) if isinstance(q, FakeQuantize)]
    modes = {m: m.training for m in model.modules()}
    count = 0
    try:
        for module in modes:
            module.training = False
        for quantizer in activations:
            quantizer.observer.reset()
        clock.state = "calibrating"
        with torch.no_grad():
            for item in batches:
                args, kwargs = arguments_of(item, count_inputs, inputs)
                model(*args, **kwargs)
                count += 1
    finally:
        clock.state = "training"
        for module, mode in modes.items():
            module.training = mode
    if count == 0:
        raise ArgumentError(
            "calibrate: there were no batches",
            expected="at least one item",
            fix="pass a list or a DataLoader that is not used up",
        )
    for quantizer in activations:
        if quantizer.is_calibrated:
            quantizer.commit()
    return model
