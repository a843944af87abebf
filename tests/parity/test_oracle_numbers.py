"""The oracle's own roundings against the machine's: numpy's float32 is IEEE 754."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from tests import oracle


def test_float32_rounds_as_the_machine_does() -> None:
    generator = np.random.default_rng(0)
    numbers = np.concatenate(
        [
            generator.normal(size=2000) * 2.0 ** generator.integers(-160, 140, 2000),
            (2 * generator.integers(2**23, 2**24, 500) + 1) * 2.0**-25,  # ties
            generator.integers(0, 2**24, 300) * 2.0**-150,  # subnormal, half of them ties
            [2.0**128 - 2.0**103, 2.0**128 - 2.0**103 * 1.01, 2.0**-150, 2.0**-149, 0.0, 1.0, 3.5e38, -3.5e38],
        ]
    )
    with np.errstate(over="ignore"):
        for number in numbers.tolist():
            assert oracle.float32(Fraction(number)) == float(np.float32(number)), number


def test_times_and_divide_round_once_as_the_machine_does() -> None:
    generator = np.random.default_rng(1)
    pairs = (generator.normal(size=(2000, 2)) * 2.0 ** generator.integers(-40, 40, (2000, 2))).astype(np.float32)
    for a, b in pairs:
        assert oracle.times(float(a), float(b)) == float(a * b)
        assert oracle.divide(float(a), float(b)) == float(a / b)


def test_fma_rounds_once() -> None:
    assert oracle.fma(1.0 + 2**-12, 1.0 + 2**-12, -1.0) == 2**-11 + 2**-24
    assert oracle.fma(0.1, 3.0, 2.0**-60) == float(np.float32(0.1 * 3 + 2.0**-60))
    # 172961 * 97 = 2^24 + 1: a tie that only the addend, lost in float64, decides.
    assert oracle.fma(172961 * 2.0**-25, 97, 0.0) == 0.5
    assert oracle.fma(172961 * 2.0**-25, 97, 2.0**-60) == 0.5 + 2.0**-24


def test_rint_is_half_to_even() -> None:
    assert [oracle.rint(x) for x in (0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5)] == [0, 2, 2, 0, -2, 126, 128]
    assert oracle.rint(math.inf) > 10**9
    assert oracle.rint(-math.inf) < -(10**9)
