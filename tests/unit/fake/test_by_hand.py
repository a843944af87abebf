"""Layers wrapped by hand."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import truequant as tq
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


def test_a_prepared_class_has_the_signature_of_its_own() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            """Says what it does."""
            return x + 1

    qat = tq.prepare(Two(), torch.ones(2, 3))
    assert list(inspect.signature(qat.forward).parameters) == ["x", "labels"]
    assert qat.forward.__doc__ == "Says what it does."
