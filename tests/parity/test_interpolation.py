"""Linear interpolation by whole factors: an integer layer that equals torch's weights, evaluation, program and onnxruntime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.interpret import interpret
from truequant.fake.resizing import interpolated_sums, interpolation_weights
from truequant.integer.nodes import DepthToSpace
from truequant.planning.resizing import linear_factors, phase_weights


@pytest.mark.parametrize("mode", ["linear", "bilinear", "trilinear"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_the_weights_are_those_of_torch(mode: str, factor: int) -> None:
    axes = {"linear": 1, "bilinear": 2, "trilinear": 3}[mode]
    x = torch.randint(-20, 20, (2, 3, *(4, 5, 6)[:axes])).double()
    got = interpolated_sums(x, (factor,) * axes) * interpolation_weights((factor,) * axes, 3)[1]
    assert torch.equal(got.round(decimals=9), F.interpolate(x, scale_factor=factor, mode=mode).round(decimals=9))


def test_phases() -> None:
    assert phase_weights(2) == ((1, 3, 0), (0, 3, 1))
    assert phase_weights(3) == ((2, 4, 0), (0, 6, 0), (0, 4, 2))
    assert phase_weights(1) == ((0, 2, 0),)


@pytest.mark.parametrize(
    ("arguments", "shape", "expected"),
    [
        ({"scale_factor": 2, "mode": "bilinear"}, (1, 1, 4, 4), (2, 2)),
        ({"scale_factor": (3, 1.0), "mode": "bilinear"}, (1, 1, 4, 4), (3, 1)),
        ({"size": (8, 12), "mode": "bilinear"}, (1, 1, 4, 4), (2, 3)),
        ({"size": 12, "mode": "linear"}, (1, 1, 4), (3,)),
        ({"size": 11, "mode": "linear"}, (1, 1, 4), None),
        ({"size": 2, "mode": "linear"}, (1, 1, 4), None),
        ({"scale_factor": 2.5, "mode": "linear"}, (1, 1, 4), None),
        ({"scale_factor": 2, "mode": "bilinear", "align_corners": True}, (1, 1, 4, 4), None),
        ({"scale_factor": 2, "mode": "bilinear", "antialias": True}, (1, 1, 4, 4), None),
        ({"scale_factor": 2, "mode": "bicubic"}, (1, 1, 4, 4), None),
        ({"scale_factor": 6, "mode": "bilinear"}, (1, 1, 4, 4), (6, 6)),  # weights up to 121
        ({"scale_factor": 7, "mode": "bilinear"}, (1, 1, 4, 4), None),  # up to 196
        ({"scale_factor": 2}, (1, 1, 4, 4), None),
    ],
)
def test_factors(arguments: dict[str, Any], shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    assert linear_factors((torch.zeros(shape),), arguments, shape) == expected


class Model(nn.Module):
    def __init__(self, axes: int, **options: Any) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.first, self.last = conv(2, 3, 3, padding=1), conv(3, 2, 3)
        self.up = nn.Upsample(**options)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.first(x)).relu())


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        (1, {"scale_factor": 4, "mode": "linear"}),
        (2, {"scale_factor": 2, "mode": "bilinear"}),
        (2, {"scale_factor": (3, 2), "mode": "bilinear"}),
        (2, {"size": (10, 18), "mode": "bilinear"}),
        (3, {"scale_factor": 2, "mode": "trilinear"}),
    ],
)
@pytest.mark.parametrize("preset", ["w8a8", "w8a8-pow2"])
def test_models(axes: int, options: dict[str, Any], preset: str) -> None:
    x = torch.randn(4, 2, *(5, 6, 4)[:axes])
    qat = tq.prepare(Model(axes, **options), x, preset)
    tq.calibrate(qat, [x])
    qat.train()(x).square().sum().backward()
    int8 = tq.convert(qat.eval())
    phases = math.prod(next(node.block for node in int8.program.nodes if isinstance(node, DepthToSpace)))
    assert int8.ops()["Conv"] == 2 + phases
    assert "Island" not in int8.ops()
    other = torch.randn(3, *x.shape[1:])
    report = tq.verify(qat, int8, [other, other[:1]])
    assert report.codes_different == report.outputs_different == 0
    said = interpret(int8.program, {int8.program.inputs[0].name: other})
    assert all(np.array_equal(codes.numpy(), said[name]) for name, codes in int8.codes(other).items())
    assert (qat(x) - tq.restore_float(qat)(x)).abs().max() < 0.1


def test_sizes_that_are_dynamic() -> None:
    x = torch.randn(4, 2, 6, 8)
    qat = tq.prepare(Model(2, scale_factor=2, mode="bilinear"), x, dynamic={0: (2, 3)})
    tq.calibrate(qat, [x])
    int8 = tq.convert(qat.eval())
    report = tq.verify(qat, int8, [torch.randn(2, 2, 9, 5), torch.randn(1, 2, 4, 12)])
    assert report.codes_different == 0


def test_other_interpolation_is_a_named_island() -> None:
    site = tq.plan(Model(2, scale_factor=2.5, mode="bilinear"), torch.randn(2, 2, 6, 8)).site("up")
    assert (site.action, site.reason) == ("float", "interpolates, bilinear")
