from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from truequant.numerics import MAX_SCALE, MIN_SCALE, bounded, power_of_two, quantize, range_of, scale_and_zero_point
from truequant.schemes import PerChannel, PowerOfTwoScale, QuantScheme, int4, int7, int8, uint4, uint8

POW2 = PowerOfTwoScale()


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_power_of_two_is_exact_for_every_exponent() -> None:
    powers = torch.tensor([2.0**e for e in range(-126, 128)])
    assert torch.equal(power_of_two(powers), powers)
    above = torch.nextafter(powers[:-1], torch.tensor(math.inf))
    assert torch.equal(power_of_two(above), powers[1:])
    below = torch.nextafter(powers, torch.tensor(0.0))
    assert torch.equal(power_of_two(below), powers)
    for count in (1, 7):  # other vector lengths
        assert torch.equal(power_of_two(powers[:count] * 1.5), powers[:count] * 2)


def test_power_of_two_is_never_below_and_never_twice() -> None:
    scale = torch.rand(10000) + 1e-6
    rounded = power_of_two(scale)
    assert bool((rounded >= scale).all())
    assert bool((rounded < 2 * scale).all())


def test_bounds_of_scales() -> None:
    scheme = QuantScheme(int8)
    assert bounded(t(0.0, 1e-30, 1.0, 1e30, math.inf), scheme).tolist() == [MIN_SCALE, MIN_SCALE, 1.0, MAX_SCALE, MAX_SCALE]
    assert bounded(t(0.0, 3.0, 1e30), QuantScheme(int8, scale=POW2)).tolist() == [MIN_SCALE, 4.0, MAX_SCALE]


@pytest.mark.parametrize(
    ("low", "high", "scheme", "scale", "zero_point"),
    [
        (0.0, 255.0, QuantScheme(uint8), 1.0, 0),
        (-255.0, 0.0, QuantScheme(uint8), 1.0, 255),
        (-1.0, 1.0, QuantScheme(uint8), 2 / 255, 127),
        (10.0, 51.0, QuantScheme(uint8), 0.2, 0),
        (-51.0, -10.0, QuantScheme(uint8), 0.2, 255),
        (0.0, 15.0, QuantScheme(uint4), 1.0, 0),
        (-127.0, 50.0, QuantScheme(int8), 1.0, 0),
        (-50.0, 127.0, QuantScheme(int8), 1.0, 0),
        (-7.0, 3.0, QuantScheme(int4), 1.0, 0),
        (-64.0, 3.0, QuantScheme(int7), 1.0, 0),
        (-3.0, 255.0, QuantScheme(uint8, symmetric=True), 1.0, 0),
        (-128.0, 127.0, QuantScheme(int8, symmetric=False), 1.0, 0),
        (0.0, 255.0, QuantScheme(int8, symmetric=False), 1.0, -128),
        (-3.0, 252.0, QuantScheme(uint8, scale=POW2), 1.0, 3),
        (-3.0, 253.0, QuantScheme(uint8, scale=POW2), 2.0, 2),
        (0.0, 0.0, QuantScheme(uint8), MIN_SCALE, 0),
        (0.0, 0.0, QuantScheme(int8), MIN_SCALE, 0),
        (0.0, 1e-30, QuantScheme(uint8), MIN_SCALE, 0),
        (-1e-30, 0.0, QuantScheme(uint8), MIN_SCALE, 0),
        (-math.inf, math.inf, QuantScheme(uint8), MAX_SCALE, 255),
        (math.nan, math.nan, QuantScheme(uint8), MIN_SCALE, 0),
    ],
)
def test_by_hand(low: float, high: float, scheme: QuantScheme, scale: float, zero_point: int) -> None:
    s, z = scale_and_zero_point(torch.tensor(low), torch.tensor(high), scheme)
    assert s.dtype == z.dtype == torch.float32
    assert float(s) == float(torch.tensor(scale, dtype=torch.float32))
    assert float(z) == zero_point


SCHEMES = [QuantScheme(uint8), QuantScheme(int8), QuantScheme(uint4), QuantScheme(int4), QuantScheme(int8, symmetric=False)]


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_promises_for_any_range(scheme: QuantScheme, power: bool) -> None:
    scheme = scheme.with_(scale=POW2) if power else scheme
    ends = torch.cat([torch.randn(2, 500) * torch.logspace(-20, 20, 500), t(0, 1, -1, 3e38, -3e38, 1e-45).repeat(2, 1)], 1)
    low, high = ends.min(0).values, ends.max(0).values
    s, z = scale_and_zero_point(low, high, scheme)
    assert bool((torch.isfinite(s) & (s >= MIN_SCALE) & (s <= MAX_SCALE)).all())
    assert torch.equal(z, z.round().clamp(scheme.qmin, scheme.qmax))
    assert torch.equal(quantize(torch.zeros_like(s), s, z, scheme.qmin, scheme.qmax), z)
    if power:
        assert torch.equal(torch.frexp(s).mantissa, torch.full_like(s, 0.5))
    bottom, top = range_of(s, z, scheme)
    inside = (low.abs() < MAX_SCALE) & (high.abs() < MAX_SCALE)
    step = s * 1.001
    assert bool(((top + step >= high) | ~inside).all())
    if scheme.dtype.signed or not scheme.is_symmetric:
        assert bool(((bottom - step <= low) | ~inside).all())


def test_ranges_of_channels() -> None:
    s, z = scale_and_zero_point(t(-1, 0, -2), t(1, 4, 0), QuantScheme(int8, PerChannel(0)))
    assert s.shape == z.shape == (3,)
    assert torch.equal(s, t(1, 4, 2) / 127)
