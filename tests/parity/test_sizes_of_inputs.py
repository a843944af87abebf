"""Movement whose sizes follow the inputs: codes again where the program has no node for it, in files of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq


class Two(nn.Module):
    """Two convolutions, the second of half the size, and a function of both."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        return self.head(self.function(a, self.b(a).relu()))


def pyramid(mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: a + F.interpolate(b, size=a.shape[-2:], mode=mode)


def tiles(a: Tensor, b: Tensor) -> Tensor:
    n, c, h, w = a.shape
    return a.view(n, c, h // 2, 2, w).permute(0, 1, 2, 4, 3).flatten(-2).reshape(n, c, h, w)


MOVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nearest to a size": pyramid("nearest"),
    "bilinear to a size": pyramid("bilinear"),
    "expand": lambda a, b: a + b.mean((2, 3), keepdim=True).expand(-1, -1, a.shape[2], a.shape[3]),
    "expand_as": lambda a, b: a * b.mean((2, 3), keepdim=True).sigmoid().expand_as(a),
    "a slice to a size": lambda a, b: a[:, :, : b.shape[2], : b.shape[3]] + b,
    "halves": lambda a, b: sum(a.chunk(2, 3)),
    "halves by size": lambda a, b: torch.cat(a.split([a.shape[2] // 4, a.shape[2] - a.shape[2] // 4], 2)[::-1], 2),
    "flip": lambda a, b: a.flip(3),
    "roll": lambda a, b: a.roll((1, -2), (2, 3)),
    "tiles": tiles,
    "an axis between": lambda a, b: a.unsqueeze(2).squeeze(2),
    "reflection": lambda a, b: F.pad(a, (1, 1, 1, 1), mode="reflect"),
    "adaptive maximum": lambda a, b: F.adaptive_max_pool2d(a, 3),
}
ELSEWHERE = {"adaptive maximum": "a dynamic size"}
"""What has no ONNX form of any size."""


@pytest.mark.parametrize("name", MOVES)
def test_any_size(name: str) -> None:
    torch.manual_seed(0)
    x, other = torch.randn(2, 3, 16, 16), torch.randn(3, 3, 20, 12)
    qat = tq.calibrate(tq.prepare(Two(MOVES[name]), x, dynamic={0: (2, 3)}), [x, other], progress=False).eval()
    int8 = tq.convert(qat)
    for given in (x, other):
        assert torch.equal(int8(given), qat(given))
    if name in ELSEWHERE:
        with pytest.raises(tq.TruequantError, match=ELSEWHERE[name]):
            tq.verify(qat, int8, [x])
        return
    report = tq.verify(qat, int8, [x, other], runtimes=("reference", "onnxruntime"))
    assert report.runtimes["reference"].grade == "EXACT"
    if name != "bilinear to a size":  # arithmetic of floats
        assert report.runtimes["onnxruntime"].codes_different == 0


@pytest.mark.parametrize("name", MOVES)
def test_one_size(name: str) -> None:
    torch.manual_seed(0)
    x: Any = torch.randn(2, 3, 16, 16)
    qat = tq.calibrate(tq.prepare(Two(MOVES[name]), x), [x], progress=False).eval()
    int8 = tq.convert(qat)
    report = tq.verify(qat, int8, [x], runtimes=("reference", "onnxruntime"))
    assert report.runtimes["onnxruntime"].grade == report.runtimes["reference"].grade == "EXACT"
    assert "Island" not in int8.ops()


@pytest.mark.parametrize("function", [lambda a, b: torch.stack(list(a), 0), lambda a, b: torch.cat(a.split(4, 2), 2)])
def test_as_many_parts_as_an_axis_is_long_are_refused(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 16, 16)
    qat = tq.calibrate(tq.prepare(Two(function), x, dynamic={0: (2, 3)}), [x], progress=False).eval()
    with pytest.raises(tq.TruequantError, match="returns as many tensors as a dynamic axis is long") as error:
        tq.convert(qat)
    assert "fix:" in str(error.value)


def test_a_longest_sequence() -> None:
    """Positions up to 40: the writer of ONNX files tries no sizes beyond them alone."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.table = nn.Linear(4, 4), nn.Embedding(40, 4)
            self.register_buffer("places", torch.arange(40)[None])

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + self.table(self.places[:, : x.shape[1]].expand(x.shape[0], -1))

    x, longest = torch.randn(2, 9, 4), torch.randn(3, 40, 4)
    qat = tq.calibrate(tq.prepare(Positions(), x, dynamic={0: (1,)}), [x, longest], progress=False).eval()
    report = tq.verify(qat, tq.convert(qat), [x, longest], runtimes=("reference", "onnxruntime"))
    assert report.runtimes["onnxruntime"].grade == "EXACT"
