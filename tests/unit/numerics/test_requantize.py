from __future__ import annotations

import math

import pytest
import torch

from truequant.numerics import (
    channel_axis,
    clamp_codes,
    global_average_factor,
    multiplier,
    quantize,
    requantize,
)


def s(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


TIES = [
    # acc, M, zero point, code
    (1, 0.5, 0, 0), (3, 0.5, 0, 2), (5, 0.5, 0, 2), (-1, 0.5, 10, 10), (-3, 0.5, 10, 8), (-5, 0.5, 10, 8),
    (1, 0.5, 1, 1), (3, 0.5, 1, 3),  # 1.5 + 1 would round to 2: the zero point comes after
    (255, 0.5, 0, 128), (509, 0.5, 0, 254), (511, 0.5, 0, 255), (1000, 1.0, 0, 255), (-1000, 1.0, 200, 0),
    (0, 1e30, 77, 77), (2**31 - 1, 2.0**-24, 0, 128), (-(2**31), 2.0**-24, 200, 72), (2**24 + 1, 2.0**-17, 0, 128),
    (2**31 - 1, 3e38, 0, 255), (-(2**31), 3e38, 9, 0), (7, 1e-45, 9, 9),
]  # fmt: skip


@pytest.mark.parametrize(("acc", "factor", "zero_point", "code"), TIES)
@pytest.mark.parametrize("carrier", [torch.int32, torch.float64])
def test_requantize_by_hand(acc: int, factor: float, zero_point: int, code: int, carrier: torch.dtype) -> None:
    got = requantize(torch.tensor([acc] * 9, dtype=carrier), s(factor), s(float(zero_point)), 0, 255)
    assert got.tolist() == [code] * 9


def test_int32_is_rounded_to_float32_half_to_even() -> None:
    """2^24 + 1 and 2^24 + 3 lie between two float32 numbers; after the product with 1 only even ones are left."""
    acc = torch.tensor([2**24 + 1, 2**24 + 2, 2**24 + 3, -(2**24) - 1, -(2**24) - 3], dtype=torch.int32)
    got = requantize(acc, s(1.0), s(0.0), -(2**30), 2**30)
    assert got.tolist() == [2**24, 2**24 + 2, 2**24 + 4, -(2**24), -(2**24) - 4]


def test_the_multiplier_rounds_the_product_first() -> None:
    sx, sw, sy = s(0.1), torch.tensor([0.3, 0.7, 1.1]), s(0.9)
    wanted = ((sx.double() * sw.double()).float().double() / sy.double()).float()
    assert torch.equal(multiplier(sx, sw, sy), wanted)
    grid = torch.rand(4000) + 0.5
    once = (sx.double() * grid.double() / sy.double()).float()
    assert not torch.equal(multiplier(sx, grid, sy), once)  # the order of rounding is part of the contract


def test_a_fused_clamp() -> None:
    codes = requantize(torch.arange(-300, 300, dtype=torch.int32), s(1.0), s(100.0), 100, 160)
    assert (codes.min(), codes.max()) == (100, 160)
    tensors = requantize(torch.arange(-300, 300, dtype=torch.int32), s(1.0), s(100.0), s(100.0), s(160.0))
    assert torch.equal(codes, tensors)


@pytest.mark.parametrize(
    ("minimum", "maximum", "scale", "zero_point", "low", "high"),
    [
        (0.0, None, 0.1, 0, 0, 255),
        (0.0, None, 0.1, 31, 31, 255),
        (0.0, 6.0, 6 / 255, 0, 0, 255),
        (0.0, 6.0, 0.1, 20, 20, 80),
        (None, None, 0.1, 9, 0, 255),
        (-1.0, 1.0, 0.5, 128, 126, 130),
        (0.0, 1e9, 0.1, 3, 3, 255),
        (-math.inf, math.inf, 0.1, 3, 0, 255),
        (0.5, 1.5, 1.0, 0, 0, 2),
        (2.5, 3.5, 1.0, 1, 3, 5),
    ],
)
def test_clamp_codes(minimum: float | None, maximum: float | None, scale: float, zero_point: int, low: int, high: int) -> None:
    got = clamp_codes(minimum, maximum, s(scale), s(float(zero_point)), 0, 255)
    assert [float(v) for v in got] == [low, high]


def test_clamp_codes_are_the_codes_of_the_ends() -> None:
    """A clamp of values, quantized, is the quantized value clamped: for every scale, also where 6 / s is nearly a tie."""
    scales = torch.cat([torch.rand(3000) * 0.2 + 0.01, 6.0 / (torch.arange(0, 250) + 0.5)])
    for scale in scales:
        low, high = clamp_codes(0.0, 6.0, scale, s(3.0), 0, 255)
        x = torch.tensor([-1.0, 0.0, 5.999, 6.0, 6.001, 100.0])
        free = quantize(x, scale, s(3.0), 0, 255)
        assert torch.equal(free.clamp(low, high), quantize(x.clamp(0.0, 6.0), scale, s(3.0), 0, 255))


def test_channels() -> None:
    values = torch.arange(3.0)
    assert channel_axis(values, 4, 1).shape == (1, 3, 1, 1)
    assert channel_axis(values, 2, 1).shape == (1, 3)
    assert channel_axis(values[:1], 4, 1).shape == (1,)
    acc = torch.ones(2, 3, 2, 2, dtype=torch.int32)
    got = requantize(acc, channel_axis(values, 4, 1), s(0.0), 0, 255)
    assert got[1, :, 1, 1].tolist() == [0, 1, 2]


def test_the_factor_of_a_mean_divides_by_the_rounded_product() -> None:
    sx, sy = s(0.1), s(0.3)
    wanted = (sx.double() / (sy.double() * 49).float().double()).float()
    assert torch.equal(global_average_factor(sx, sy, 49), wanted)
