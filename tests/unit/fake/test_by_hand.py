"""Layers wrapped by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from truequant.fake import FakeQuantize, QATModuleWrapper
from truequant.schemes import QuantScheme, uint8


@pytest.mark.parametrize("training", [True, False])
def test_quantizers_take_the_mode_of_the_layer(training: bool) -> None:
    """A layer that is wrapped in evaluation observes nothing before it is put into training."""
    layer = nn.Linear(4, 3).train(training)
    wrapped = QATModuleWrapper.wrap(layer, output=QuantScheme(uint8))
    found = [m for m in wrapped.modules() if isinstance(m, FakeQuantize)]
    assert found
    assert all(q.training is training for q in found)
    if training:
        wrapped(torch.randn(2, 4))
        assert all(q.is_calibrated for q in found)
