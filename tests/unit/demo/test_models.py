"""The four models: shapes, sizes, and no word of quantization."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from truequant.demo import MODELS, models


@pytest.mark.parametrize("name", MODELS)
def test_ten_logits_an_image_and_a_gradient_for_every_parameter(name: str) -> None:
    model = MODELS[name]()
    y = model(torch.rand(3, 1, 28, 28))
    assert y.shape == (3, 10)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("name", "count"), [("mlp", 270_346), ("lenet", 80_250), ("resnet", 300_858), ("mobilenet", 101_506)])
def test_parameters(name: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in MODELS[name]().parameters()) == count


def test_the_models_are_plain_pytorch() -> None:
    source = inspect.getsource(models)
    assert "truequant" not in source
    assert re.findall("quant|fuse|stub|fake", source.split('"""', 2)[2], re.IGNORECASE) == []
