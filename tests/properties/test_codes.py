"""What holds for every scale, zero point, range and value."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from truequant.integer.packing import narrowest, pack, unpack
from truequant.numerics import dequantize, quantize, recover, scale_and_zero_point
from truequant.schemes import INTEGER_TYPES, PowerOfTwoScale, QuantScheme

QUICK = settings(max_examples=150, deadline=None, derandomize=True)
SCALES = st.builds(lambda m, e: float(np.float32(m) * np.float32(2.0) ** e), st.floats(1, 1.9999998), st.integers(-60, 60))
VALUES = st.floats(width=32, allow_nan=False)


@st.composite
def qparams(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int]:
    qmin, qmax = draw(
        st.sampled_from([(0, 255), (-128, 127), (-127, 127), (0, 15), (-7, 7), (0, 1), (0, 65535), (-32768, 32767)])
    )
    return torch.tensor(draw(SCALES)), torch.tensor(float(draw(st.integers(qmin, qmax)))), qmin, qmax


def value(x: Tensor, p: tuple[Tensor, Tensor, int, int]) -> Tensor:
    return dequantize(quantize(x, *p), p[0], p[1])


@QUICK
@given(qparams())
def test_quantize_after_dequantize_is_the_identity_on_codes(p: tuple[Tensor, Tensor, int, int]) -> None:
    scale, zero_point, qmin, qmax = p
    codes = torch.arange(qmin, qmax + 1).float()
    assert torch.equal(quantize(dequantize(codes, scale, zero_point), *p), codes)
    assert torch.equal(recover(dequantize(codes, scale, zero_point), scale, zero_point), codes - zero_point)


@QUICK
@given(qparams())
def test_real_zero_is_exact(p: tuple[Tensor, Tensor, int, int]) -> None:
    assert quantize(torch.zeros(1), *p).item() == p[1].item()
    assert value(torch.zeros(1), p).item() == 0.0


@QUICK
@given(qparams(), st.lists(VALUES, min_size=1, max_size=20))
def test_fake_quantization_is_idempotent_and_inside(p: tuple[Tensor, Tensor, int, int], values: list[float]) -> None:
    x = torch.tensor(values)
    once = value(x, p)
    assert torch.equal(value(once, p), once)
    codes = quantize(x, *p)
    assert torch.equal(codes, codes.round())
    assert bool(((codes >= p[2]) & (codes <= p[3])).all())


@QUICK
@given(qparams(), st.lists(VALUES, min_size=2, max_size=20))
def test_quantization_keeps_order(p: tuple[Tensor, Tensor, int, int], values: list[float]) -> None:
    codes = quantize(torch.tensor(sorted(values)), *p)
    assert bool((codes.diff() >= 0).all())


@QUICK
@given(qparams(), st.floats(-1, 1, width=32))
def test_the_error_inside_the_range_is_half_a_step(p: tuple[Tensor, Tensor, int, int], fraction: float) -> None:
    scale, zero_point, qmin, qmax = p
    low, high = (qmin - zero_point) * scale, (qmax - zero_point) * scale
    x = torch.clamp(fraction * torch.maximum(high, -low), low, high)
    assert abs(float(value(x, p).double() - x.double())) <= float(scale) * 0.5 * (1 + 2**-7)


@QUICK
@given(VALUES, VALUES, st.sampled_from([t for t in INTEGER_TYPES.values() if t.bits > 1]), st.booleans(), st.booleans())
def test_any_range_gives_a_scale_and_a_zero_point(a: float, b: float, dtype: object, symmetric: bool, power: bool) -> None:
    scheme = QuantScheme(dtype, symmetric=symmetric)  # type: ignore[arg-type]
    scheme = scheme.with_(scale=PowerOfTwoScale()) if power else scheme
    scale, zero_point = scale_and_zero_point(torch.tensor(min(a, b)), torch.tensor(max(a, b)), scheme)
    assert 2.0**-64 <= float(scale) <= 2.0**64
    assert scheme.qmin <= int(zero_point) == float(zero_point) <= scheme.qmax
    if power:
        assert math.frexp(float(scale))[0] == 0.5


@QUICK
@given(
    st.integers(1, 4).flatmap(
        lambda b: st.lists(st.integers(-(2 ** (b - 1)), max(1, 2 ** (b - 1) - 1)), min_size=1, max_size=40)
    )
)
def test_packed_codes_come_back(values: list[int]) -> None:
    codes = torch.tensor(values, dtype=torch.int8)
    bits = narrowest(codes)
    assert bits in (1, 2, 4)
    assert torch.equal(unpack(pack(codes, bits), bits, tuple(codes.shape)), codes)
