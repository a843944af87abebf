"""What models of other people's libraries do, one kind each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


class LayerDrop(nn.Module):
    """As wav2vec2 and Bart: a step of training leaves layers out at random."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(3))
        self.layers, self.head, self.dropped = nn.ModuleList(layers), nn.Linear(8, 2), {1}

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            if not (self.training and i in self.dropped):
                x = layer(x)
        y: Tensor = self.head(x)
        return y


def test_layers_that_the_traced_step_left_out_are_trained_in_others() -> None:
    torch.manual_seed(0)
    model = LayerDrop()
    qat: Any = tq.prepare(model, X).train()
    before = {name: p.detach().clone() for name, p in qat.named_parameters()}
    optimizer = torch.optim.SGD(qat.parameters(), 0.1)
    layer = qat.layers[1][0]
    for dropped in ({1}, set(), {0, 2}, {0, 1, 2}, set[int]()):
        qat.dropped = dropped
        optimizer.zero_grad()
        qat(X).square().mean().backward()
        if 1 not in dropped:  # quantized in this step, with the weight as it stands
            scale = layer.quantizers["weight"].scale
            assert torch.equal(scale, layer.quantizers["weight"].scale_of(layer.weight.detach()))
        optimizer.step()
    assert all(bool((p != before[name]).any()) for name, p in qat.named_parameters() if p.dim() == 2)
    int8 = tq.convert(qat.eval())
    assert torch.equal(int8(X), qat(X))
    assert tq.verify(qat, int8, [X]).codes_different == 0


class OwnNames(nn.Module):
    """As torchvision's GoogLeNet and Inception: a class with methods whose names are near at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [torch.relu(self.layer(x)), self._leaf(x)]

    def _leaf(self, x: Tensor) -> Tensor:
        return x

    def _outermost(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def forward(self, x: Tensor) -> Tensor:
        return self._outermost(*self._forward(x))


class Held(nn.Module):
    """As Mamba's cache of a convolution: an op that exists in place alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        state = torch.zeros_like(y)
        state.copy_(y)
        result: Tensor = self.head(state)
        return result


@pytest.mark.parametrize("kind", [OwnNames, Held])
def test_the_whole_way(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    qat = tq.prepare(kind(), X).train()
    qat(X).sum().backward()
    qat.eval()
    int8 = tq.convert(qat)
    assert torch.equal(int8(X), qat(X))
    report = tq.verify(qat, int8, [X])
    assert report.codes_different == 0
    assert str(report.runtimes["onnxruntime"].grade) == "EXACT"
