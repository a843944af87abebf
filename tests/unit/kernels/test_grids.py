"""Searches, codes of weights, tokens on their grids and sums of groups: every level against plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.kernels.levels import LEVELS
from truequant import kernels, numerics
from truequant.observers import weight_range
from truequant.schemes import (
    MSE,
    Histogram,
    PerChannel,
    PerGroup,
    PerTensor,
    PowerOfTwoScale,
    QuantScheme,
    int2,
    int3,
    int4,
    int8,
    uint4,
)
from truequant.schemes.presets import Q4_0, Q8_0

SCHEMES = [
    QuantScheme(int4, PerGroup(32), observer=MSE()), QuantScheme(int3, PerGroup(7), observer=MSE()),
    QuantScheme(int8, PerChannel(0), observer=MSE()), QuantScheme(int2, PerTensor(), observer=Histogram()),
    QuantScheme(int4, PerChannel(0), observer=MSE(), scale=PowerOfTwoScale()),
]  # fmt: skip
OF_FILES = [
    Q4_0, Q8_0, QuantScheme(int3, PerGroup(9), observer=MSE(), full_range=True),
    QuantScheme(int4, PerChannel(0), observer=MSE(), scale_dtype="bfloat16"),
]  # fmt: skip
WITH_ZERO_POINTS = [
    QuantScheme(uint4, PerGroup(32), observer=MSE()), QuantScheme(int4, PerChannel(0), symmetric=False, observer=MSE()),
    QuantScheme(uint4, PerTensor(), observer=MSE(), scale_dtype="float16"),
]  # fmt: skip


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(128, 200, generator=generator)
    odd = plain * torch.rand(128, 1, generator=generator) * 1e-3
    odd[0], odd[1, 3], odd[2, 5], odd[3], odd[4, 0], odd[5] = 0.0, torch.nan, torch.inf, 1e-42, torch.nan, 3e38
    odd[6, 8], odd[7] = -torch.inf, torch.nan
    return [plain, plain**3, odd, plain[:, :1].clone(), -plain.abs()]


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scheme", [*SCHEMES, *OF_FILES, *WITH_ZERO_POINTS], ids=str)
def test_a_search_chooses_the_range_of_plain_torch(level: str, scheme: QuantScheme) -> None:
    asked: list[bool] = []

    def search(rows: Tensor, scales: Tensor, zero_points: Tensor, qmin: float, qmax: float) -> Tensor | None:
        found = kernels.least_error(rows, scales, zero_points, qmin, qmax)
        asked.append(found is not None)
        return found

    with kernels.using(level):
        for weight in weights():
            found, wanted = weight_range(weight, scheme, search), weight_range(weight, scheme)
            assert torch.equal(bits(found[0]), bits(wanted[0]))
            assert torch.equal(bits(found[1]), bits(wanted[1]))
    assert len(asked) >= len(weights())
    assert all(asked)


@pytest.mark.parametrize("level", LEVELS)
def test_the_first_of_equal_grids_is_chosen(level: str) -> None:
    """Of numpy's: each row's squared error on each of its grids, in float64."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(50, 19)).astype(np.float32)
    scales = generator.choice(np.float32([0.01, 0.1, 0.25, 0.5]), (50, 12))
    zero_points = generator.integers(0, 16, (50, 12)).astype(np.float32)
    codes = np.clip(np.rint(rows[:, None] / scales[..., None]) + zero_points[..., None], 0, 15)
    values = (codes - zero_points[..., None]).astype(np.float32) * scales[..., None]
    errors = ((values - rows[:, None]).astype(np.float64) ** 2).sum(-1)
    with kernels.using(level):
        found = kernels.least_error(*(torch.from_numpy(v) for v in (rows, scales, zero_points)), 0.0, 15.0)
    assert found is not None
    assert found.tolist() == errors.argmin(-1).tolist()


@pytest.mark.parametrize("level", LEVELS)
def test_grids_of_other_rows_or_dtypes_are_left_to_torch(level: str) -> None:
    rows, grids = torch.rand(2, 8), torch.rand(2, 3)
    with kernels.using(level):
        assert kernels.least_error(rows, grids[:1], grids[:1], 0.0, 15.0) is None
        assert kernels.least_error(rows, grids, grids[:, :2], 0.0, 15.0) is None
        assert kernels.least_error(rows.double(), grids, grids, 0.0, 15.0) is None


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_values_and_codes_of_a_weight(level: str, scheme: QuantScheme) -> None:
    group = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else 0
    with kernels.using(level):
        for weight in weights():
            scale = numerics.scale_and_zero_point(*weight_range(weight, scheme), scheme)[0]
            wide = numerics.expand(scale, scheme.granularity, tuple(weight.shape))
            codes = numerics.quantize(weight, wide, torch.zeros_like(wide), scheme.qmin, scheme.qmax)
            values = kernels.weight_on_grid(weight, scale, scheme, group)
            found = kernels.weight_codes(weight, scale, scheme, group)
            assert values is not None
            assert found is not None
            assert torch.equal(bits(values), bits(numerics.dequantize(codes, wide, torch.zeros_like(wide))))
            assert found.dtype == torch.int8
            assert torch.equal(found.float(), codes)


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_kernel_cannot_read_is_left_to_torch(level: str) -> None:
    scheme = SCHEMES[2]
    with kernels.using(level):
        for weight in (torch.randn(4, 6).t(), torch.randn(6, 4).bfloat16(), torch.randn(6, 4, device="meta")):
            assert kernels.weight_on_grid(weight, torch.ones(6), scheme, 0) is None
        assert kernels.weight_codes(torch.randn(6, 4), torch.ones(5), scheme, 0) is None


@pytest.mark.parametrize("level", kernels.levels())
@pytest.mark.parametrize("width", [1, 7, 64, 96])
def test_tokens_on_grids_of_their_own(level: str, width: int) -> None:
    x = torch.randn(3, 5, width, generator=torch.Generator().manual_seed(width))
    x[0, 0], x[1, 2, 0], x[2, 1], x[2, 2] = 0.0, torch.inf, 1e-44, -3e38
    with kernels.using(level):
        for one in (x, x.transpose(0, 1), x.bfloat16(), torch.where(x > 2, torch.nan, x)):
            codes, scale = numerics.token_codes(one.float(), 127)
            y = kernels.fake_quantize_tokens(one, 127)
            assert y.dtype == one.dtype
            assert torch.equal(torch.nan_to_num(y, 7.0), torch.nan_to_num((codes * scale).to(one.dtype), 7.0))


@pytest.mark.parametrize("level", kernels.levels())
@pytest.mark.parametrize(
    ("outputs", "groups", "length", "tokens"), [(8, 2, 32, 4), (37, 3, 32, 7), (5, 4, 4, 1), (16, 2, 100, 3), (9, 2, 30, 2)]
)
def test_sums_of_groups_are_exact(level: str, outputs: int, groups: int, length: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(outputs)
    codes = torch.randint(-8, 9, (outputs, groups * length), generator=generator, dtype=torch.int8)
    codes[0], codes[1] = 8, -8
    scale = 0.01 + torch.rand(outputs, groups, generator=generator) * 0.1
    x = torch.randn(tokens, groups * length, generator=generator)
    x[0] = 1.0  # every code 127
    with kernels.using(level):
        for bias in (None, torch.randn(outputs, generator=generator)):
            y = kernels.dynamic_linear(x, codes, scale, bias, 127)
            assert torch.equal(y, numerics.dynamic_linear(x, codes.float(), scale, bias, 127))
    token, step = numerics.token_codes(x, 127)
    for t in range(tokens):
        for o in range(min(outputs, 4)):
            whole = (token[t].long() * codes[o].long()).reshape(groups, length).sum(1).tolist()
            total = sum(w * float(s) for w, s in zip(whole, scale[o], strict=True))
            wanted = torch.tensor(total, dtype=torch.float64).float() * step[t, 0]
            assert float(numerics.dynamic_linear(x, codes.float(), scale, None, 127)[t, o]) == float(wanted)


@pytest.mark.parametrize("level", kernels.levels())
def test_larger_codes_and_nan_are_left_to_torch(level: str) -> None:
    codes, scale = torch.randint(-127, 128, (4, 64), dtype=torch.int8), torch.full((4, 2), 0.01)
    codes[0, 0] = 9
    x: Any = torch.randn(3, 64)
    with kernels.using(level):
        assert torch.equal(
            kernels.dynamic_linear(x, codes, scale, None, 127), numerics.dynamic_linear(x, codes.float(), scale, None, 127)
        )
        x[1, 4] = torch.nan
        y = kernels.dynamic_linear(x, codes.clamp(-8, 8), scale, None, 127)
        assert bool(torch.isnan(y[1]).all())
        assert not bool(torch.isnan(y[[0, 2]]).any())
