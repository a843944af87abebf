"""Constructs that people write: they ship exactly, or a named error says what stands in the way and the model stays usable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.models import leaves
from truequant.errors import ConversionError, TruequantError


class Written(nn.Module):
    """A convolution, then what a function makes of its result."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 8, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


class LowRank(nn.Module):
    """A frozen layer with a trained correction beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.base(x) + x @ self.a.t() @ self.b.t())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.out = nn.Embedding(30, 8, padding_idx=0), nn.Linear(8, 8), nn.Linear(8, 30, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.body(self.words(ids))))


class Exits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.heads = nn.ModuleDict({"early": nn.Linear(8, 2), "last": nn.Linear(8, 4)})

    def forward(self, x: Tensor) -> dict[str, Tensor | None]:
        found: dict[str, Tensor | None] = {"nothing": None}
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x))
            if i == 1:
                found["early"] = self.heads["early"](x)
        return found | {"last": self.heads["last"](x)}


class OneHot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        return self.out(F.relu(self.body(F.one_hot(kinds, 4).float() + x)))


def swapped(y: Tensor) -> Tensor:
    a, b, *rest = y.unbind(1)
    return torch.stack([b, a, *rest], 1)


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def vector() -> Tensor:
    return torch.randn(3, 8)


EXACT: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "padding modes": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        ), image,
    ),
    "replicated": (lambda: Written(lambda y: F.pad(y, (2, 1, 0, 1), mode="replicate")), image),
    "repeated": (lambda: Written(lambda y: y.flip(1).roll(2, 3)[:, [3, 1, 1]]), image),
    "expanded": (lambda: Written(lambda y: y.mean((2, 3), keepdim=True).expand(-1, -1, 4, 3) * y[:, :, :4, :3]), image),
    "unbound": (lambda: Written(swapped), image),
    "parts of the batch": (lambda: Written(lambda y: torch.cat([t * 2 for t in torch.split(y, 1)])), image),
    "uneven parts": (lambda: Written(lambda y: torch.cat([t * (i + 1.0) for i, t in enumerate(y.split(3, 1))], 1)), image),
    "scalars": (lambda: Written(lambda y: (1 - y) * 2 + y / 3 - (-y).abs()), image),
    "in place": (lambda: Written(lambda y: y.clone().sub_(F.relu(y)).div_(2)), image),
    "transposed views": (lambda: Written(lambda y: y.mT.movedim(1, 2) + 1), image),
    "poolings": (lambda: Written(lambda y: F.adaptive_max_pool2d(y, 2) - F.adaptive_avg_pool2d(y, 4)[:, :, ::2, ::2]), image),
    "interpolated": (lambda: Written(lambda y: F.interpolate(y, size=(11, 5))), image),
    "unshuffled": (lambda: Written(lambda y: F.channel_shuffle(F.pixel_unshuffle(y, 2), 4)), image),
    "tables": (lambda: Written(lambda y: F.mish(y) + F.softplus(y) - F.selu(y) + F.celu(y) - F.logsigmoid(y)), image),
    "spectral norm": (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU()), image),
    "low rank": (LowRank, vector),
    "computed twice": (lambda: Written(lambda y: torch.cat([F.max_pool2d(y, 2), -F.max_pool2d(y, 2)], 1)), image),
    "centred twice": (
        lambda: Written(lambda y: (y - y.mean((2, 3), True)) * torch.sigmoid(y - y.mean((2, 3), True))), image,
    ),
    "tied": (Tied, lambda: torch.randint(0, 30, (2, 5))),
    "exits": (Exits, vector),
    "clamped in float": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1), nn.Hardtanh(0.05, 0.2), nn.Softmax(-1), nn.Linear(8, 2)), vector,
    ),
    "normalized twice": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2)),
        vector,
    ),
    "one hot": (OneHot, lambda: (torch.randn(3, 4), torch.tensor([0, 1, 3]))),
}  # fmt: skip


def call(model: Any, inputs: Any) -> Any:
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def prepared(make: Callable[[], nn.Module], inputs: Callable[[], Any]) -> nn.Module:
    torch.manual_seed(0)
    qat = tq.prepare(make(), inputs())
    for _ in range(2):
        torch.stack([t.square().mean() for t in leaves(call(qat, inputs()))]).sum().backward()
    return qat.eval()


@pytest.mark.parametrize("name", EXACT)
def test_ships_exactly(name: str) -> None:
    make, inputs = EXACT[name]
    qat = prepared(make, inputs)
    int8 = tq.convert(qat)
    x = inputs()
    with torch.no_grad():
        expected = leaves(call(qat, x))
        assert all(torch.equal(a, b) for a, b in zip(expected, leaves(call(int8, x)), strict=True))
        shipped = leaves(call(tq.compile(int8, "onnxruntime"), x))  # proves its kernels, as export does
        assert all(torch.equal(a, b) for a, b in zip(expected, shipped, strict=True))
    report = tq.verify(qat, int8, [x, inputs()])
    assert report.codes_compared > 0
    assert report.codes_different == 0
    assert report.outputs_different == 0


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], type[TruequantError], str]] = {
    "branch on a value": (lambda y: y if y.sum() > 0 else -y, ConversionError, "no static graph"),
    "loop over the batch": (lambda y: torch.stack([t.flatten()[:4] for t in y]), ConversionError, "dynamic axis"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_ship_is_named(name: str) -> None:
    function, kind, said = REFUSED[name]
    qat = prepared(lambda: Written(function), image)
    with torch.no_grad():
        qat(image())  # still usable
    with pytest.raises(kind, match=said):
        tq.compile(tq.convert(qat), "onnxruntime")


def test_a_model_without_memory_is_prepared() -> None:
    """On the meta device nothing can be computed, and preparing computes nothing: shapes and plan are there."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    decided = tq.plan(model, torch.randn(2, 3, 8, 8))
    qat = tq.prepare(model.to("meta"), torch.randn(2, 3, 8, 8, device="meta"))
    assert qat.binding.plan.sites == decided.sites
    assert {p.device.type for p in (*qat.parameters(), *qat.buffers())} == {"meta"}
    assert qat.train()(torch.zeros(2, 3, 8, 8, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("layouts", [(0, 1), (1, 0), (1, 1)])
def test_islands_read_the_layout_of_the_program(layouts: tuple[int, int]) -> None:
    """The sums of a float op depend on the layout of what it reads: values are compared here, not the codes behind them."""
    formats, seen = (torch.contiguous_format, torch.channels_last), []
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.GroupNorm(4, 64), nn.ReLU(), nn.Conv2d(64, 8, 3))
    model, x = model.to(memory_format=formats[layouts[0]]), torch.randn(4, 3, 33, 29).to(memory_format=formats[layouts[1]])
    qat = tq.prepare(model, x, dataclasses.replace(tq.QConfig(), rules=(tq.Rule(nn.GroupNorm, None),)))
    tq.calibrate(qat, [x])
    int8 = tq.convert(qat.eval())
    qat[1].quantizers["output"].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert torch.equal(qat(x), int8(x))
    (norm,) = (n for n in int8.program.nodes if type(n).__name__ == "Island" and "norm" in n.op)
    assert torch.equal(seen[0], int8._execute((x,), {}, frozenset({norm.output}))[norm.output])
