"""The share of a program that is computed on integers, counted by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import truequant as tq
from truequant.integer.shares import InFloat


class Net(nn.Module):
    def __init__(self, island: bool) -> None:
        super().__init__()
        self.conv, self.head, self.island = nn.Conv2d(3, 4, 3), nn.Linear(144, 5), island

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        logits: Tensor = self.head((y.cumsum(-1) if self.island else y).flatten(1))
        return logits


def converted(island: bool) -> tuple[tq.Int8Model, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    return tq.convert(tq.calibrate(tq.prepare(Net(island), x), [x], progress=False).eval()), x


def test_what_is_computed_is_counted_and_the_largest_islands_are_named() -> None:
    int8, x = converted(island=True)
    found = int8.share(x)
    assert found.integer == 2 * 4 * 6 * 6 + 2 * 5
    assert sorted(n.op for n in found.in_float) == ["Dequantize", "Quantize", "cumsum.default"]
    assert InFloat("cumsum_0", "cumsum.default", 288) in found.in_float
    assert found.floats == 3 * 288
    assert found.on_integers == 298 / (298 + 864)
    assert str(found).startswith("25.6% of 1,162 elements are computed on integers; most in float: ")
    assert "'cumsum_0' (cumsum.default, 24.8%)" in str(found)


def test_the_ends_of_a_model_are_not_counted() -> None:
    int8, x = converted(island=False)
    found = int8.share(x[:1])
    assert (found.integer, found.in_float) == (4 * 6 * 6 + 5, ())
    assert str(found) == "100.0% of 149 elements are computed on integers"


class Scaled(nn.Module):
    """A table of numbers for each place, as rotary products have it: a float operation that every runtime rounds alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.table = nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(x) * self.table)
        return y


def test_operations_on_floats_are_float_though_they_are_exact() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8)
    int8 = tq.convert(tq.calibrate(tq.prepare(Scaled(), x), [x], progress=False).eval())
    assert int8.ops()["Pointwise"] == 1
    found = int8.share(x)
    assert found.integer == 2 * 6 * 8 + 2 * 6 * 5
    assert sorted((n.op, n.elements) for n in found.in_float) == [("Pointwise", 96), ("Quantize", 96)]
