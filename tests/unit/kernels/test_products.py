"""Layers and sums of codes in one call of a kernel, at every level: against whole numbers, and against the written rule."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.unit.kernels.levels import LEVELS
from truequant import kernels, numerics
from truequant.kernels import Result, Windows, layer_of_codes, products_of_codes, quantized_values, sum_of_codes

pytestmark = pytest.mark.skipif(kernels.compiled() is None, reason="they are compiled, and `make setup` found no compiler")


def result_of(outputs: int, factors: int, scale: float = 0.0) -> Result:
    generator = torch.Generator().manual_seed(outputs)
    factor = torch.rand(factors, generator=generator) * 1e-3 + 1e-5
    return Result(torch.randint(-30_000, 30_000, (outputs,), generator=generator), factor, 7.0, 2.0, 250.0, scale)


def rounded(sums: Any, result: Result, axis: int) -> Tensor:
    """float32 step by step, of sums that are whole numbers of any size."""
    shape = [1] * sums.ndim
    shape[axis] = -1
    acc = torch.from_numpy(sums + result.bias.numpy().reshape(shape)).to(torch.float32)
    factor = result.factor.reshape(shape) if len(result.factor) > 1 else result.factor
    codes = torch.clamp(torch.round(acc * factor) + result.zero_point, result.low, result.high)
    return codes if result.scale == 0.0 else (codes - result.zero_point) * torch.tensor(result.scale)


def whole(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (7, 5, 3), (13, 33, 17), (200, 515, 40), (97, 1030, 33)])
def test_linear(level: str, rows: int, inputs: int, outputs: int) -> None:
    x, weight = whole(-255, 255, rows, inputs), whole(-128, 127, outputs, inputs)
    sums = x.numpy() @ weight.numpy().T
    grid = 0.0371
    for factors, scale in ((outputs, 0.0), (1, 0.25)):
        result = result_of(outputs, factors, scale)
        with kernels.using(level):
            y = layer_of_codes(x.float() * torch.tensor(grid), grid, weight, result)
        assert y is not None
        assert torch.equal(y, rounded(sums, result, 1))


@pytest.mark.parametrize("level", LEVELS)
def test_the_largest_codes_in_the_longest_sums(level: str) -> None:
    inputs = 1 << 14
    for sign in (1, -1):
        x, weight = torch.full((3, inputs), 255), torch.full((2, inputs), 128 * sign if sign < 0 else 127)
        result = Result(torch.tensor([(1 << 30) - 1, 1 - (1 << 30)]), torch.tensor([1e-7]), 0.0, -128.0, 127.0)
        with kernels.using(level):
            y = layer_of_codes(x.float(), 1.0, weight, result)
        assert y is not None
        assert torch.equal(y, rounded(x.numpy().astype(np.int64) @ weight.numpy().T.astype(np.int64), result, 1))


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Windows]] = {
    "1d, asymmetric padding": ((2, 3, 20), (5, 3, 4), Windows((1,), ((2, 1),), (1,), 1)),
    "2d": ((2, 4, 9, 11), (18, 4, 3, 3), Windows((1, 1), ((1, 1), (1, 1)), (1, 1), 1)),
    "2d, strided, dilated": ((2, 4, 13, 12), (7, 4, 3, 2), Windows((2, 3), ((0, 2), (3, 0)), (2, 1), 1)),
    "1x1": ((1, 64, 7, 9), (30, 64, 1, 1), Windows((1, 1), ((0, 0), (0, 0)), (1, 1), 1)),
    "groups": ((2, 12, 8, 8), (8, 3, 3, 3), Windows((1, 1), ((1, 1), (1, 1)), (1, 1), 4)),
    "depthwise": ((2, 6, 9, 10), (6, 1, 3, 3), Windows((1, 1), ((1, 1), (1, 1)), (1, 1), 6)),
    "depthwise, two outputs a channel, strided": ((1, 5, 9, 17), (10, 1, 5, 3), Windows((2, 2), ((2, 2), (1, 1)), (1, 1), 5)),
    "depthwise, stride 3": ((1, 5, 3, 17), (5, 1, 1, 3), Windows((1, 3), ((0, 0), (1, 1)), (1, 2), 5)),
    "3d": ((2, 3, 4, 5, 6), (4, 3, 2, 3, 2), Windows((1, 2, 1), ((1, 0), (1, 1), (0, 1)), (1, 1, 2), 1)),
    "many inputs": ((1, 130, 5, 5), (9, 130, 3, 3), Windows((1, 1), ((1, 1), (1, 1)), (1, 1), 1)),
}  # fmt: skip


def window_sums(x: Any, weight: Any, windows: Windows) -> Any:
    """int64, window by window."""
    axes = weight.ndim - 2
    x = np.pad(x, ((0, 0), (0, 0), *windows.padding))
    reach = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], windows.dilation, strict=True)]
    places = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, windows.stride, strict=True)]
    sums = np.zeros((x.shape[0], weight.shape[0], *places), np.int64)
    each = weight.shape[0] // windows.groups
    for place in itertools.product(*map(range, places)):
        at = tuple(
            slice(p * s, p * s + r, d) for p, s, r, d in zip(place, windows.stride, reach, windows.dilation, strict=True)
        )
        window = x[(slice(None), slice(None), *at)]
        for k in range(weight.shape[0]):
            first = k // each * weight.shape[1]
            inner = window[:, first : first + weight.shape[1]] * weight[k]
            sums[(slice(None), k, *place)] = inner.sum(axis=tuple(range(1, axes + 2)))
    return sums


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(level: str, name: str) -> None:
    size, shape, windows = CONVOLUTIONS[name]
    weight = whole(-127, 127, *shape)
    for x, given, grid in (
        (whole(-255, 255, *size), lambda t: t.float() * torch.tensor(0.02), 0.02),
        (whole(0, 255, *size), lambda t: t.to(torch.uint8), 131),
        (whole(-128, 127, *size), lambda t: t.to(torch.int8), -5),
    ):
        centred = x.numpy() - (0 if isinstance(grid, float) else grid)
        result = result_of(shape[0], shape[0])
        with kernels.using(level):
            y = layer_of_codes(given(x), grid, weight, result, windows)  # type: ignore[no-untyped-call]
        assert y is not None
        assert torch.equal(y, rounded(window_sums(centred, weight.numpy(), windows), result, 1))


def test_what_no_kernel_computes() -> None:
    x, weight, result = whole(-5, 5, 4, 8).float(), whole(-5, 5, 3, 8), result_of(3, 3)
    assert layer_of_codes(x, 1.0, weight, result) is not None
    nearly = x.clone()
    nearly[3, 7] = torch.nextafter(torch.tensor(3.0), torch.tensor(9.0))
    assert layer_of_codes(nearly, 1.0, weight, result) is None
    broken = x.clone()
    broken[0, 0] = torch.nan
    assert layer_of_codes(broken, 1.0, weight, result) is None
    assert layer_of_codes(x * 40_000, 1.0, weight, result) is None
    long = torch.zeros(2, (1 << 14) + 1)
    assert layer_of_codes(long, 1.0, long[:1], result_of(1, 1)) is None
    far = Result(torch.tensor([1 << 30, 0, 0]), result.factor, 0.0, 0.0, 255.0)
    assert layer_of_codes(x, 1.0, weight, far) is None
    assert layer_of_codes(x.double(), 1.0, weight, result) is None
    with kernels.using("reference"):
        assert layer_of_codes(x, 1.0, weight, result) is None


@pytest.mark.parametrize("level", LEVELS)
def test_sums_of_all_pairs(level: str) -> None:
    a, b = (t.reshape(-1).float() for t in torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"))
    generator = torch.Generator().manual_seed(3)
    for k in range(12):
        scales = torch.rand(3, generator=generator) + 0.01 if k % 2 else 2.0 ** torch.randint(-4, 3, (3,), generator=generator)
        zeros = torch.randint(0, 256, (3,), generator=generator).float()
        grids = tuple(zip(scales.unbind(), zeros.unbind(), strict=True))
        expected = numerics.add(a, b, *grids, 3, 251, "onnxruntime")
        with kernels.using(level):
            codes = sum_of_codes(a, b, *grids, 3, 251, reads_codes=True, writes_codes=True)
            values = [(t - z) * s for t, (s, z) in zip((a, b), grids, strict=False)]
            y = sum_of_codes(*values, *grids, 3, 251, reads_codes=False, writes_codes=False)
        assert codes is not None
        assert y is not None
        assert torch.equal(codes, expected)
        assert torch.equal(y, numerics.dequantize(expected, *grids[2]))
    assert sum_of_codes(a, b[:256], *grids, 3, 251, reads_codes=True, writes_codes=True) is None


@pytest.mark.parametrize("level", LEVELS)
def test_quantized_values(level: str) -> None:
    x = torch.cat([torch.randn(3001) * 40, torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 12.5 * 0.3])])
    scale, zero = torch.tensor(0.3), torch.tensor(13.0)
    with kernels.using(level):
        y = quantized_values(x, scale, zero, 1, 200)
    assert y is not None
    assert torch.equal(y, numerics.dequantize(numerics.quantize(x, scale, zero, 1, 200), scale, zero))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding="same", groups=8),
            nn.Conv2d(8, 6, 1, groups=2),
        )  # fmt: skip
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.head((y + F.relu(y)).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("preset", ["int8", "w8a8-pow2", "w4a4", "w8a8-per-tensor"])
def test_a_model_and_its_program(preset: str) -> None:
    """At every level, and without kernels: the same bits; what recorders see too."""
    x = torch.randn(2, 3, 10, 12)
    qat = tq.calibrate(tq.prepare(Net(), x, preset), [x]).eval()
    int8 = tq.convert(qat)
    with kernels.using("reference"):
        expected, codes = qat(x), int8.codes(x)
        assert torch.equal(int8(x), expected)
    for level in LEVELS:
        with kernels.using(level):
            assert torch.equal(qat(x), expected)
            assert torch.equal(int8(x), expected)
            assert all(torch.equal(found, codes[name]) for name, found in int8.codes(x).items())
            assert tq.verify(qat, int8, [x]).codes_different == 0


def test_whatever_writes_into_a_model_is_seen() -> None:
    """Integers are folded once; nobody has to tell that a tensor changed."""
    x = torch.randn(2, 3, 10, 12)
    qat = tq.calibrate(tq.prepare(Net(), x), [x]).eval()

    def expected() -> Tensor:
        with kernels.using("reference"):
            return copy.deepcopy(qat)(x)  # type: ignore[no-any-return]

    before = qat(x)
    assert torch.equal(before, expected())
    conv, norm = qat.features[0], qat.features[1]
    for change in (
        lambda: conv.weight.data.mul_(1.5), lambda: conv.weight.detach().numpy().__imul__(-1), lambda: conv.bias.data.add_(1),
        lambda: norm.running_mean.add_(0.5), lambda: norm.running_var.mul_(3), lambda: norm.weight.data.neg_(),
        lambda: setattr(conv, "weight", nn.Parameter(torch.randn_like(conv.weight))),
    ):  # fmt: skip
        change()
        after = qat(x)
        assert not torch.equal(after, before)
        assert torch.equal(after, expected())
        before = after


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(5, 7, 3), (2, 3, 13, 40, 17), (1, 65, 1, 70)])
def test_products_of_activations(level: str, shape: tuple[int, ...]) -> None:
    *batch, rows, inputs, columns = shape
    a, b = whole(-255, 255, *batch, rows, inputs), whole(-255, 255, *batch, inputs, columns)
    with kernels.using(level):
        sums = products_of_codes(a, b)
        assert products_of_codes(a.float() + 0.5, b) is None
        assert products_of_codes(a[None], b) is None
    assert sums is not None
    assert sums.dtype == torch.int32
    assert np.array_equal(sums.numpy(), a.numpy() @ b.numpy())
