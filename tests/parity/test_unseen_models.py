"""Models that nothing was written for: keyword inputs and dict outputs, dense concatenation, shared modules, own parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import truequant as tq


class Temporal(nn.Module):
    """Convolutions in time, gates, a softmax that stays float; an optional input that is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(3, 16, 5, padding=2), nn.BatchNorm1d(16)
        self.second = nn.Conv1d(16, 16, 3, dilation=2, padding=2)
        self.head, self.gate = nn.Linear(16, 4), nn.Linear(4, 4)

    def forward(self, signal: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        x = F.gelu(self.norm(self.first(signal)))
        x = x + torch.tanh(self.second(x))
        x = F.avg_pool1d(x * torch.sigmoid(x), 2).mean(-1)
        y = self.head(x)
        return {"logits": y, "gate": torch.softmax(self.gate(F.relu(y)), -1)}


class Dense(nn.Module):
    """BatchNorm before convolutions: float islands between integer layers; every part of a concat shares one grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(32, 5)
        widths = (8, 16, 24)
        self.layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, 8, 3, padding=1)) for w in widths)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))


class Siamese(nn.Module):
    """One encoder called twice, two inputs, a parameter used in a function call, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
        self.decoder, self.out = nn.Linear(12, 6), nn.Linear(6, 2)
        self.mix = nn.Parameter(torch.randn(6, 6))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        z = F.linear(self.decoder(self.encoder(a)) + self.decoder(self.encoder(b)), self.mix)
        return self.out(z), z


def inputs_of(kind: type[nn.Module], batch: int) -> Any:
    if kind is Temporal:
        return {"signal": torch.randn(batch, 3, 20)}
    return torch.randn(batch, 3, 12, 12) if kind is Dense else (torch.randn(batch, 6), torch.randn(batch, 6))


def call(model: Any, item: Any) -> Any:
    return model(**item) if isinstance(item, dict) else model(*item) if isinstance(item, tuple) else model(item)


@pytest.mark.parametrize("preset", ["int8", "w8a8", "w4a4", "w8a8-pow2"])
@pytest.mark.parametrize("kind", [Temporal, Dense, Siamese])
def test_trained_converted_exported_verified(kind: type[nn.Module], preset: str) -> None:
    torch.manual_seed(0)
    qat = tq.prepare(kind(), inputs_of(kind, 2), preset)
    batches = [inputs_of(kind, n) for n in (4, 1, 7)]
    tq.calibrate(qat, batches)
    optimizer = torch.optim.Adam(qat.parameters(), 1e-3)
    for item in batches:
        optimizer.zero_grad()
        sum(t.square().mean() for t in pytree.tree_leaves(call(qat, item))).backward()
        optimizer.step()
    int8 = tq.convert(qat.eval())
    report = tq.verify(qat, int8, batches)
    assert report.codes_different == 0, str(report)
    assert report.runtimes["reference"].grade == "EXACT"
    with torch.no_grad():
        ours, theirs = call(qat, batches[0]), call(int8, batches[0])
    assert type(ours) is type(theirs)
    assert all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True))


def test_an_argument_that_is_a_list_of_tensors() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, pair: list[Tensor]) -> Tensor:
            return self.linear(pair[0] + pair[1])

    item = ([torch.randn(2, 3), torch.randn(2, 3)],)
    qat = tq.prepare(Pair(), item)
    qat(*item)
    int8 = tq.convert(qat.eval())
    assert torch.equal(int8(*item), qat(*item))
    assert tq.verify(qat, int8, [item]).codes_different == 0
