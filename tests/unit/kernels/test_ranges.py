"""Scales that a shift has moved, and ranges of channels that take effect, by compiled code: the bits of torch's ops."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import truequant as tq
from tests.unit.kernels.levels import LEVELS, on_each, same
from truequant import kernels
from truequant.fake import FakeQuantize
from truequant.fake.algorithms.algorithm import positive, with_gain
from truequant.schemes import MinMax, PerChannel, PowerOfTwoScale, QuantScheme, int8, uint4, uint8

GAIN = 0.0123


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [1.0, 1e-19, 1e21])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (64,), (3, 11)])
def test_a_moved_scale_and_its_gradient(level: str, size: float, shape: tuple[int, ...]) -> None:
    """Initial scales on both sides of the bounds too."""
    initial = (torch.rand(shape) * 0.1 + 0.001) * size
    for reach in (0.0, 0.01, 3.0, -200.0):
        shift = (torch.randn(shape) * reach).requires_grad_()
        if shift.numel() > 4:
            with torch.no_grad():
                shift.view(-1)[:4] = torch.tensor([0.0, -0.0, math.nan, -math.inf])
        gradient = torch.randn(shape)
        with kernels.using(level):
            scale = kernels.learned_scale(initial, shift, GAIN)
        expected = with_gain(positive(initial, shift), GAIN / (initial * initial))
        assert scale is not None
        assert same(scale.detach(), expected.detach())
        (found,), (wanted,) = torch.autograd.grad(scale, shift, gradient), torch.autograd.grad(expected, shift, gradient)
        assert torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0))


@pytest.mark.parametrize("level", LEVELS)
def test_what_else_a_shift_may_be(level: str) -> None:
    initial = torch.tensor([0.5, 0.25])
    with kernels.using(level):
        assert kernels.learned_scale(initial, torch.zeros(2, dtype=torch.bfloat16, requires_grad=True), GAIN) is None
        assert kernels.learned_scale(initial, torch.zeros(1, 2, requires_grad=True), GAIN) is None
        assert kernels.learned_scale(initial.to("meta"), torch.zeros(2, device="meta"), GAIN) is None
        shift = torch.zeros(2, requires_grad=True)
        with torch.no_grad():
            scale = kernels.learned_scale(initial, shift, GAIN)
        assert scale is not None
        assert not scale.requires_grad
        scale = kernels.learned_scale(initial, shift, GAIN)
        assert scale is not None
        (once,) = torch.autograd.grad(scale.square().sum(), shift, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate"):
            once.sum().backward()


CHANNELS = 5
SCHEMES = [
    QuantScheme(uint8, PerChannel(1)), QuantScheme(uint8, PerChannel(1), symmetric=False),
    QuantScheme(int8, PerChannel(1), observer=MinMax()), QuantScheme(int8, PerChannel(1), scale=PowerOfTwoScale()),
    QuantScheme(uint4, PerChannel(1), observer=tq.ranges.MovingAverage(momentum=0.5)),
]  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", range(len(SCHEMES)), ids=[str(s) for s in SCHEMES])
def test_ranges_of_channels(level: str, case: int) -> None:
    """State after every step; one channel is never seen, one not at first, and one step sees nothing finite at all."""

    def run() -> list[Tensor]:
        quantizer, found = FakeQuantize(SCHEMES[case], CHANNELS), []
        for step in range(6):
            x = torch.randn(4, CHANNELS, 3) * (step + 1)
            x[:, 1] = math.nan
            if step == 0:
                x[:, 3] = math.inf
            quantizer(x if step != 4 else torch.full_like(x, math.nan))
            found += [v.detach().clone().double() for v in quantizer.state_dict().values()]
        quantizer.eval()
        return found + [v.detach().clone().double() for v in quantizer.state_dict().values()]

    expected, got = on_each(level, run)
    assert all(same(a, b) for a, b in zip(expected, got, strict=True))
    scales = [e for e in expected if e.shape == (CHANNELS,)]
    assert any(not torch.equal(a, b) for a, b in pairwise(scales))


@pytest.mark.parametrize("level", LEVELS)
def test_the_kernel_commits(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not torch's ops, once there is a range; and with the bits of a schedule."""
    quantizer = FakeQuantize(QuantScheme(uint4, PerChannel(0)), CHANNELS)
    x = torch.rand(CHANNELS, 9)
    with kernels.using(level):
        quantizer(x)
        monkeypatch.setattr(FakeQuantize, "_take_effect", None)
        quantizer(2 * x)
        assert torch.equal(quantizer.observer.updates, torch.tensor(1))
        version = quantizer.scale._version
        quantizer(2 * x)
        assert quantizer.scale._version > version
        monkeypatch.undo()
        quantizer.set_bits(8)
        quantizer(x)
        quantizer(x)
        assert torch.equal(quantizer.scale, x.amax(1) / 255)
