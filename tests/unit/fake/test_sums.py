"""Linear layers whose codes are summed in integers in training: against whole numbers, and against torch where nothing fits."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.unit.fake.test_products import Attention, Checkpointed, Reentrant, equal, prepared, steps
from tests.unit.kernels.levels import LEVELS
from truequant import kernels
from truequant.fake import FakeQuantize, WeightQuantizer
from truequant.fake.products import product
from truequant.schemes import PerChannel, QuantScheme, int4, int8, uint4, uint8, uint16

pytestmark = pytest.mark.skipif(kernels.compiled() is None, reason="the sums are compiled, and `make setup` found no compiler")


class Operands:
    """A quantized matrix, a quantized weight, and their quantizers."""

    def __init__(self, shape: tuple[int, ...], outputs: int, x: QuantScheme, weight: QuantScheme, middle: float = 0.5) -> None:
        torch.manual_seed(len(shape) + outputs)
        self.reads = FakeQuantize(x).train()
        channels = outputs if weight.granularity == PerChannel(0) else None
        self.weights = WeightQuantizer(weight, channels).train()
        self.leaf = (torch.randn(*shape) + middle).requires_grad_()
        self.parameter = torch.randn(outputs, shape[-1]).requires_grad_()
        self.bias = torch.randn(outputs).requires_grad_()
        self.reads(self.leaf.detach())
        self.x, self.weight = self.reads(self.leaf), self.weights(self.parameter)

    def result(self, x: Tensor | None = None, weight: Tensor | None = None, bias: bool = True) -> Tensor:
        """By codes, where it can be."""
        operands = (self.x if x is None else x, self.weight if weight is None else weight, self.bias if bias else None)
        return product(F.linear, *operands, self.reads, self.weights)

    def whole(self, x: Tensor, bias: bool = True) -> np.ndarray[Any, Any]:
        """Exact sums of whole numbers; then what is rounded, in float32: the sum, the scale, their product, with the bias."""
        sx, sw = self.reads.scale.numpy(), self.weights.scale.reshape(-1).numpy()
        a = np.rint(x.detach().double().numpy() / np.float64(sx)).astype(np.int64)
        w = np.rint(self.weight.detach().double().numpy() / sw.astype(np.float64)[:, None]).astype(np.int64)
        y = (a @ w.T).astype(np.float32) * (sx * sw)
        return y + self.bias.detach().numpy() if bias else y


GRIDS = [
    (QuantScheme(uint8), QuantScheme(int8, PerChannel(0))), (QuantScheme(uint8), QuantScheme(int8)),
    (QuantScheme(int8), QuantScheme(int8, PerChannel(0))), (QuantScheme(uint4), QuantScheme(int4)),
    (QuantScheme(uint8, symmetric=True), QuantScheme(int4, PerChannel(0))),
]  # fmt: skip


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("shape", [(16, 16), (37, 5), (3, 11, 67), (2, 3, 4, 129), (400, 33)])
@pytest.mark.parametrize("level", LEVELS)
def test_sums_are_those_of_whole_numbers(level: str, shape: tuple[int, ...], grids: tuple[QuantScheme, QuantScheme]) -> None:
    for outputs, middle, bias in ((16, 0.5, True), (61, -3.0, False)):
        given = Operands(shape, outputs, *grids, middle)
        with kernels.using(level):
            y = given.result(bias=bias)
        assert np.array_equal(y.detach().numpy(), given.whole(given.x, bias))


def test_rows_of_a_wider_matrix() -> None:
    given = Operands((40, 3, 32), 24, *GRIDS[0])
    rows = given.x[:, 1]
    assert not rows.is_contiguous()
    assert np.array_equal(given.result(rows).detach().numpy(), given.whole(rows))


def test_the_longest_sums_hold_the_largest_codes() -> None:
    given = Operands((16, 1 << 14), 16, *GRIDS[0])
    with torch.no_grad():
        x = given.reads(torch.full_like(given.leaf, 1e9))
        parameter = torch.full_like(given.parameter, -1.0)
        weight = given.weights(parameter)
        given.weight = weight
    found = given.result(x, weight)
    assert np.array_equal(found.detach().numpy(), given.whole(x))
    assert float(found.detach().abs().max()) > 0


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_torch(bias: bool) -> None:
    def gradients(linear: Any) -> list[Tensor | None]:
        given = Operands((5, 9, 32), 48, *GRIDS[0])
        y = linear(given, bias)
        y.backward(torch.ones_like(y) * 0.3)
        return [given.leaf.grad, given.parameter.grad, given.bias.grad]

    mine = gradients(lambda given, bias: given.result(bias=bias))
    torchs = gradients(lambda given, bias: F.linear(given.x, given.weight, given.bias if bias else None))
    for a, b in zip(mine, torchs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (b is not None and torch.equal(a, b))


def test_what_lies_on_no_grid_is_torchs() -> None:
    """NaN, what was changed behind its quantizer, few rows, and codes of more than eight bits."""
    given = Operands((40, 32), 24, *GRIDS[0])
    broken = given.x.detach().clone()
    broken[39, 31] = torch.nan
    assert given.result(broken).isnan().sum() == 24
    dropped = F.dropout(given.x, 0.5)
    assert torch.equal(given.result(dropped), F.linear(dropped, given.weight, given.bias))
    nearly = given.x.detach().clone()
    nearly[-1, -1] = torch.nextafter(nearly[-1, -1], torch.tensor(9.0))
    assert torch.equal(given.result(nearly), F.linear(nearly, given.weight, given.bias))
    beyond = given.x.detach().clone()
    beyond[0, 0] = 300 * given.reads.scale
    assert torch.equal(given.result(beyond), F.linear(beyond, given.weight, given.bias))
    weight = given.weight.detach() * 0.9
    assert torch.equal(given.result(weight=weight), F.linear(given.x, weight, given.bias))
    assert torch.equal(given.result(given.x[:15]), F.linear(given.x[:15], given.weight, given.bias))
    long = Operands((16, (1 << 14) + 1), 16, *GRIDS[0])
    assert torch.equal(long.result(), F.linear(long.x, long.weight, long.bias)), "its sums could exceed 32 bits"
    wide = Operands((40, 32), 24, QuantScheme(uint16), GRIDS[0][1])
    assert torch.equal(wide.result(), F.linear(wide.x, wide.weight, wide.bias))


def test_a_model_sums_codes_unless_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []

    def watched(linear: Any, *operands: Any) -> Tensor:
        found.append(len(operands) == 5)
        return product(linear, *operands)

    monkeypatch.setattr("truequant.fake.layer_steps.product", watched)
    mine, torchs = (steps(prepared(Attention, linear=linear)) for linear in (True, False))
    half = len(found) // 2
    assert all(found[:half])
    assert not any(found[half:])
    assert not equal(mine, torchs), "the sums are rounded otherwise"
    for a, b in zip(mine[:2], torchs[:2], strict=True):
        assert torch.allclose(a, b, atol=0.05 * float(b.abs().max()))


@pytest.mark.parametrize("make", [Checkpointed, Reentrant])
def test_recomputed_forwards_sum_codes_too(make: type[Checkpointed], monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps(prepared(make, linear=True))
    monkeypatch.setattr("tests.unit.fake.test_products.checkpoint", lambda block, x, use_reentrant: block(x))
    assert equal(found, steps(prepared(make, linear=True)))


def test_the_trained_model_ships_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    qat = tq.prepare(model, torch.randn(20, 32), replace(tq.QConfig.preset("w8a8"), fusions=tq.Fusions()))
    optimizer = torch.optim.SGD(qat.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        qat(torch.randn(20, 32)).square().mean().backward()
        optimizer.step()
    x = torch.randn(200, 32)
    assert tq.verify(qat.eval(), tq.convert(qat), [x]).codes_different == 0


def test_kernels_that_saturate_are_not_used() -> None:
    """Told to do without VNNI, oneDNN adds pairs of products in 16 bits: the result is exact or torch's."""
    code = """
import numpy as np, torch, torch.nn.functional as F
from tests.unit.fake.test_sums import GRIDS, Operands
given = Operands((64, 256), 64, *GRIDS[0], 9.0)
y = given.result()
assert np.array_equal(y.detach().numpy(), given.whole(given.x)) or torch.equal(y, F.linear(given.x, given.weight, given.bias))
"""
    for isa in ("AVX2", "AVX512_CORE"):
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
