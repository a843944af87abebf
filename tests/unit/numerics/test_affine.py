"""Hand-computed codes at every boundary."""

from __future__ import annotations

import math

import pytest
import torch

from truequant.numerics import along_axis, binarize, dequantize, expand, parameter_shape, quantize, recover
from truequant.schemes import PerChannel, PerGroup, PerTensor


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)
BOUNDARIES = [
    # x, scale, zero point, qmin, qmax, code
    (0.5, 1, 0, -128, 127, 0), (1.5, 1, 0, -128, 127, 2), (2.5, 1, 0, -128, 127, 2), (-0.5, 1, 0, -128, 127, 0),
    (-1.5, 1, 0, -128, 127, -2), (-2.5, 1, 0, -128, 127, -2), (126.5, 1, 0, -128, 127, 126), (127.5, 1, 0, -128, 127, 127),
    (-127.5, 1, 0, -128, 127, -128), (-127.5, 1, 0, -127, 127, -127), (-128.5, 1, 0, -128, 127, -128),
    (0.49999997, 1, 0, 0, 255, 0), (0.50000006, 1, 0, 0, 255, 1), (-0.50000006, 1, 1, 0, 255, 0),
    (0.5, 1, 1, 0, 255, 1), (1.5, 1, 1, 0, 255, 3),  # the zero point is added after rounding
    (254.5, 1, 0, 0, 255, 254), (255.5, 1, 0, 0, 255, 255), (-0.5, 1, 0, 0, 255, 0), (-1, 1, 0, 0, 255, 0),
    (0.0, 1, 37, 0, 255, 37), (-0.0, 1, 37, 0, 255, 37), (0.0, 1, 255, 0, 255, 255), (0.0, 1, 0, 0, 255, 0),
    (0.3, 0.1, 0, 0, 255, 3), (0.25, 0.1, 0, 0, 255, 2), (0.35, 0.1, 0, 0, 255, 4),
    (1.0, 3.0, 0, 0, 15, 0), (1.5, 3.0, 0, 0, 15, 0),
    (math.inf, 1, 5, 0, 255, 255), (-math.inf, 1, 5, 0, 255, 0), (math.nan, 1, 5, 0, 255, 0), (math.nan, 1, 5, -128, 127, 0),
    (math.nan, 1, 5, 3, 255, 3), (math.nan, 1, -5, -128, -2, -2),
    (1e-45, 1, 7, 0, 255, 7), (-1e-45, 1, 7, 0, 255, 7), (1e-45, 1e-38, 0, 0, 255, 0), (1.5e-38, 1.2e-38, 0, 0, 255, 1),
    (3.4e38, 1, 0, 0, 255, 255), (-3.4e38, 1, 9, 0, 255, 0),
    (3.4e38, 2.0**-64, 0, 0, 255, 255), (-3.4e38, 2.0**-64, 9, 0, 255, 0),
    (16777217.0, 1, 128, 0, 255, 255),
]  # fmt: skip


@pytest.mark.parametrize(("x", "scale", "zero_point", "qmin", "qmax", "code"), BOUNDARIES)
def test_quantize_at_the_boundaries(x: float, scale: float, zero_point: int, qmin: int, qmax: int, code: int) -> None:
    for count in (1, 9):  # one element, and more than one vector of the machine
        got = quantize(t(*[x] * count), torch.tensor(float(scale)), torch.tensor(float(zero_point)), qmin, qmax)
        assert got.dtype == torch.float32
        assert got.tolist() == [code] * count


def test_division_is_true_division() -> None:
    """x * (1 / s) rounds twice and finds other codes next to ties."""
    scales = torch.rand(200, 1) + 0.01
    x = (torch.arange(256.0) + 0.5) * scales
    wanted = torch.round((x.double() / scales.double()).float())
    assert torch.equal(quantize(x, scales, ZERO, 0, 255), wanted.clamp(0, 255))
    assert not torch.equal(torch.round(x * (1 / scales)), wanted)


def test_bounds_may_be_tensors() -> None:
    got = quantize(t(-9, 3, math.nan, 300), ONE, ZERO, t(1, 1, 1, 1), t(9, 9, 9, 9))
    assert got.tolist() == [1, 3, 1, 9]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_of_other_dtypes_are_read_as_float32(dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 300, 1000).to(dtype)
    assert torch.equal(quantize(x, torch.tensor(0.7), ONE, 0, 255), quantize(x.float(), torch.tensor(0.7), ONE, 0, 255))


def test_dequantize_by_hand() -> None:
    assert dequantize(t(0, 7, 255), torch.tensor(0.5), torch.tensor(7.0)).tolist() == [-3.5, 0.0, 124.0]
    assert dequantize(torch.tensor([0, 255], dtype=torch.uint8), torch.tensor(0.5), torch.tensor(7.0)).tolist() == [-3.5, 124.0]
    assert dequantize(t(3), torch.tensor(0.1), ZERO).item() == float(t(0.1) * 3)


def test_binary_codes() -> None:
    assert binarize(t(-1, -1e-45, -0.0, 0.0, 1e-45, 2, math.nan, -math.inf)).tolist() == [-1, -1, 1, 1, 1, 1, 1, -1]


@pytest.mark.parametrize("exponent", [-120, -64, -60, -31, -1, 0, 1, 30, 60, 64, 100])
def test_recover_is_exact_for_all_codes(exponent: int) -> None:
    codes = torch.arange(-65535, 65536).float()
    for mantissa in (1.0, 1.1, 1.3333334, 1.9999999):
        scale = torch.tensor(mantissa * 2.0**exponent)
        assert torch.equal(recover(codes * scale, scale, ZERO), codes)


def test_shapes_of_parameters() -> None:
    shape = (4, 3, 2, 2)
    assert parameter_shape(PerTensor(), shape) == ()
    assert parameter_shape(PerChannel(0), shape) == (4,)
    assert parameter_shape(PerChannel(1), shape) == (3,)
    assert parameter_shape(PerGroup(5), shape) == (4, 3)
    assert expand(ONE, PerTensor(), shape).shape == ()
    assert expand(torch.arange(3.0), PerChannel(1), shape).shape == (1, 3, 1, 1)
    assert expand(torch.arange(3.0), PerChannel(-3), shape).flatten().tolist() == [0, 1, 2]
    groups = expand(torch.arange(12.0).reshape(4, 3), PerGroup(5), shape)
    assert groups.shape == shape
    assert groups[1].flatten().tolist() == [3] * 5 + [4] * 5 + [5] * 2
    assert along_axis(ONE, 1, 4).shape == ()
    assert along_axis(torch.arange(3.0), 0, 2).shape == (3, 1)
