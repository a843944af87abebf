"""Compiled fake quantization of weights and rounding of biases: every level gives the reference's bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from tests.unit.kernels.levels import LEVELS, awkward, on_each, same
from truequant.fake import WeightQuantizer
from truequant.schemes import MSE, Percentile, PerChannel, PerGroup, PowerOfTwoScale, QuantScheme, int2, int4, int8

SCHEMES: list[tuple[QuantScheme, Any]] = [
    (QuantScheme(int8, PerChannel(0)), 6), (QuantScheme(int8), None), (QuantScheme(int4, PerGroup(16)), (6, 3)),
    (QuantScheme(int2, PerChannel(0), gradient="identity"), 6), (QuantScheme(int8, PerChannel(0), scale=PowerOfTwoScale()), 6),
    (QuantScheme(int4, PerChannel(0), observer=MSE()), 6), (QuantScheme(int4, observer=Percentile(90.0)), None),
    (QuantScheme(int8, PerChannel(1)), 4),
]  # fmt: skip


def run(scheme: QuantScheme, channels: Any, weights: list[Tensor], frozen: bool = False) -> list[Tensor]:
    quantizer = WeightQuantizer(scheme, channels)
    quantizer.initialize(weights[0])
    quantizer.clock.state = "frozen" if frozen else "training"
    found = []
    for weight in weights:
        w = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
        y = quantizer(w)
        found += [y.detach(), *torch.autograd.grad(y, w, torch.randn(y.shape).to(y.dtype)), quantizer.scale.reshape(-1).clone()]
        with torch.no_grad():
            found.append(quantizer.eval()(w * 1.5))
        found.append(quantizer.train().scale.reshape(-1).clone())
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", range(len(SCHEMES)), ids=[str(s) for s, _ in SCHEMES])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights(level: str, dtype: torch.dtype, case: int, frozen: bool) -> None:
    def steps() -> list[Tensor]:
        weights = [torch.randn(6, 4, 3, 3).to(dtype) * (k + 1) for k in range(3)]
        weights.append(weights[0].contiguous(memory_format=torch.channels_last))
        return run(*SCHEMES[case], weights, frozen)

    for a, b in zip(*on_each(level, steps), strict=True):
        assert same(a, b)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(6, 1), (6, 1, 3, 3), (6, 513), (6, 17)])
def test_lengths_and_values(level: str, shape: tuple[int, ...]) -> None:
    def steps() -> list[Tensor]:
        n = torch.Size(shape).numel()
        return run(QuantScheme(int8, PerChannel(0)), 6, [torch.randn(shape), awkward(n).reshape(shape), torch.zeros(shape)])

    for a, b in zip(*on_each(level, steps), strict=True):
        assert same(a, b)


def test_nothing_is_kept_where_nothing_is_clipped() -> None:
    kept: list[Tensor] = []
    quantizer = WeightQuantizer(QuantScheme(int8, PerChannel(0)), 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        quantizer(nn.Parameter(torch.randn(4, 100)))
    assert kept == []


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("preset", ["w8a8", "w8a8-per-tensor", "w8a8-pow2", "w4a4"])
def test_a_model_trains_to_the_same_bits(level: str, preset: str) -> None:
    """Convolutions with and without BatchNorm and biases, over several steps: gradients, parameters and state."""

    def train() -> list[Tensor]:
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8),
            nn.ReLU6(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5),
        )  # fmt: skip
        config = replace(tq.QConfig.preset(preset), fusions=tq.Fusions(norm=False))  # its sums have an order of their own
        qat = tq.prepare(model, torch.randn(2, 3, 8, 8), config)
        optimizer = torch.optim.SGD(qat.parameters(), 0.05, 0.9)
        for _ in range(4):
            optimizer.zero_grad()
            qat(torch.randn(6, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        gradients = [p.grad for p in qat.parameters() if p.grad is not None]
        return [*gradients, *(v.detach().double().reshape(-1) for v in qat.state_dict().values())]

    for a, b in zip(*on_each(level, train), strict=True):
        assert same(a.detach(), b.detach())
