"""Average pooling whose windows do not all hold the same number of elements: oracle, evaluation, program, onnxruntime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.agreement import one
from tests.programs import S8, edge, random_codes
from truequant.integer.nodes import AveragePool

WINDOWS = [(2, 2, 0, True), (3, 2, 1, False), (3, 2, 1, True), (3, 1, 1, True), (2, 3, 0, True), (4, 3, 2, False)]


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil_mode"), WINDOWS)
@pytest.mark.parametrize("rule", ["onnxruntime", "portable"])
def test_oracle(kernel: int, stride: int, padding: int, ceil_mode: bool, rule: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for x, y in (
        (edge(0.02, 128), edge(0.013, 100)),
        (edge(0.02, 0), edge(0.02, 0)),
        (edge(2**-5, 7), edge(2**-6, 50)),
        (edge(0.2, -3, S8), edge(0.1, 5, S8)),
    ):
        node = AveragePool("x", "y", (kernel,) * 2, (stride,) * 2, (padding,) * 2, ceil_mode, rule, y.qmin + 1, y.qmax)
        one(node, {"x": x, "y": y}, x=random_codes((2, 2, 7, 9), x, generator))


class Pools(nn.Module):
    def __init__(self, axes: int, include: bool, **options: Any) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.first, self.last = conv(2, 4, 3, padding=1), conv(4, 3, 1)
        pool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[axes - 1]
        self.pool = pool(3, 2, count_include_pad=include, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.first(x)))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    ("include", "options"),
    [
        (True, {"ceil_mode": True}),
        (False, {"padding": 1}),
        (True, {"padding": 1, "ceil_mode": True}),
        (False, {"padding": 1, "ceil_mode": True}),
    ],
)
@pytest.mark.parametrize("preset", ["w8a8", "w8a8-pow2"])
def test_models(axes: int, include: bool, options: dict[str, Any], preset: str) -> None:
    x = torch.randn(4, 2, *(7, 8, 6)[:axes])
    qat = tq.prepare(Pools(axes, include, **options), x, preset)
    assert tq.plan(Pools(axes, include, **options), x).site("pool").action == "pool"
    tq.calibrate(qat, [x])
    qat.train()(x).square().sum().backward()
    int8 = tq.convert(qat.eval())
    assert int8.ops()["AveragePool"] == 1
    report = tq.verify(qat, int8, [torch.randn(3, *x.shape[1:]), torch.randn(1, *x.shape[1:])])
    assert report.codes_different == report.outputs_different == 0


def test_the_exact_mean_is_near() -> None:
    """Beside equality: what all of them compute is torch's pooling, within half a step and the input's own."""
    x = torch.randn(4, 2, 7, 8)
    model = Pools(2, False, padding=1, ceil_mode=True)
    qat = tq.prepare(model, x)
    tq.calibrate(qat, [x])
    found = tq.codes(qat.eval(), x)
    grids = dict(tq.quantizers(qat))
    x_grid, y_grid = grids["first.output"], grids["pool.output"]
    values = (found["first"].float() - x_grid.zero_point) * x_grid.scale
    pooled = F.avg_pool2d(values, 3, 2, 1, True, False)
    inside = (found["pool"] > 0) & (found["pool"] < 255)
    error = ((found["pool"].float() - y_grid.zero_point) * y_grid.scale - pooled).abs()
    assert inside.sum() > 100
    assert error[inside].max() <= y_grid.scale * 0.5001


def test_a_divisor_of_ones_own_is_an_integer_layer() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(self.conv(x), 2, divisor_override=3)

    x = torch.randn(3, 2, 9, 9)
    qat = tq.prepare(Model(), x)
    tq.calibrate(qat, [x])
    int8 = tq.convert(qat.eval())
    assert int8.ops()["Conv"] == 2
    assert tq.verify(qat, int8, [x]).codes_different == 0
    assert (qat(x) - tq.restore_float(qat)(x)).abs().max() < 0.05


def test_windows_that_would_begin_in_the_padding_stay_float() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool1d(self.conv(x), 2, 3, 1, ceil_mode=True)

    lengths = {n: tq.plan(Model(), torch.randn(2, 1, n)).site("avg_pool1d_0") for n in range(3, 12)}
    assert {s.action for s in lengths.values()} == {"pool", "float"}
    assert {s.reason for s in lengths.values() if s.action == "float"} == {"its last windows would begin in the padding"}
