"""Ranges that have grown a thousandfold since they were first found: a training that diverged."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from truequant.fake.control import quantizers
from truequant.fake.quantizers import FakeQuantize

GROWN = 1000.0
"""The factor from which on it is said. A range that follows a training moves by a few per cent, at times by a few times."""


@torch.no_grad()
def warn_of_exploded_ranges(model: nn.Module) -> None:
    """A warning that names the quantizer of activations whose scale has grown most, where one has grown so far."""
    grown = {}
    for name, quantizer in quantizers(model):
        if not isinstance(quantizer, FakeQuantize) or quantizer.first_scale is None:
            continue
        first, now = quantizer.first_scale.double().cpu(), quantizer.effective_scale().double().cpu()
        if first.shape == now.shape:
            grown[name] = float((now / first).max())
    far = {name: factor for name, factor in grown.items() if factor > GROWN}
    if far:
        name = max(far, key=far.__getitem__)
        others = f", as did those of {len(far) - 1} more" if len(far) > 1 else ""
        warnings.warn(
            f"The range of '{name}' has grown {far[name]:,.0f} times since calibration or the first batch{others}: did the "
            "training diverge? Look at the loss and take a smaller learning rate; a checkpoint from before, or `tq.calibrate` "
            "where the weights are as they should be, gives other ranges.",
            stacklevel=4,
        )
