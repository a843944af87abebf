"""The reference program and the oracle compute the same integers: poolings and movement."""

from __future__ import annotations

import pytest
import torch

from tests.agreement import agree, one
from tests.programs import (
    S8,
    codes_in,
    edge,
    random_codes,
    values_of,
)
from truequant.integer import IntegerProgram, nodes


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("axes", [(-1,), (-2, -1), (-3,), (-3, -2, -1), (-1, -2)])
@pytest.mark.parametrize("keepdim", [True, False])
def test_global_average(axes: tuple[int, ...], keepdim: bool, generator: torch.Generator) -> None:
    for x, y in (
        (edge(0.013, 0), edge(0.013, 0)),
        (edge(0.017, 131), edge(0.009, 17)),
        (edge(2**-6, 255), edge(2**-7, 255)),
        (edge(0.2, -3, S8), edge(0.1, 5, S8)),
    ):
        node = nodes.GlobalAverage("x", "y", axes, keepdim, y.qmin + 1, y.qmax)
        one(node, {"x": x, "y": y}, x=random_codes((3, 5, 7, 4), x, generator))
        one(node, {"x": x, "y": y}, x=random_codes((0, 5, 7, 4), x, generator))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 1), (2, 1, 1, 1), (1, 2, 0, 1), (3, 3, 1, 2), (4, 3, 2, 1), (2, 3, 0, 3)],
)
def test_max_pool(kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool, generator: torch.Generator) -> None:
    for x in (edge(0.1, 128), edge(0.1, 0, S8), edge(0.1, 255)):
        for shape in ((2, 3, 7, 8), (1, 1, 5, 6), (0, 2, 9, 7)):
            node = nodes.MaxPool("x", "y", (kernel,) * 2, (stride,) * 2, (padding,) * 2, (dilation,) * 2, ceil_mode)
            codes = random_codes(shape, x, generator)
            got = one(node, {"x": x, "y": x}, x=codes)
            if shape[0]:
                fields = (kernel, stride, padding, dilation, ceil_mode)
                assert torch.equal(got.float(), torch.nn.functional.max_pool2d(codes.float(), *fields).clamp(min=x.qmin))


def test_max_pool_of_one_and_three_axes(generator: torch.Generator) -> None:
    x = edge(0.1, 128)
    one(nodes.MaxPool("x", "y", (3,), (2,), (1,), (1,), True), {"x": x, "y": x}, x=random_codes((2, 3, 8), x, generator))
    codes = random_codes((1, 2, 5, 6, 7), x, generator)
    got = one(nodes.MaxPool("x", "y", (2, 3, 1), (2, 1, 3), (1, 0, 0), (1, 2, 1), False), {"x": x, "y": x}, x=codes)
    assert torch.equal(got.float(), torch.nn.functional.max_pool3d(codes.float(), (2, 3, 1), (2, 1, 3), (1, 0, 0), (1, 2, 1)))


@pytest.mark.parametrize(
    "node",
    [
        nodes.Reshape("x", "y", (0, -1)),
        nodes.Reshape("x", "y", (-1, 4)),
        nodes.Reshape("x", "y", (0, 0, 2, 6)),
        nodes.Reshape("x", "y", (0, 0, 0, 0)),
        nodes.Reshape("x", "y", (0, 3, -1)),
        nodes.Transpose("x", "y", (0, 2, 3, 1)),
        nodes.Transpose("x", "y", (3, 1, 0, 2)),
        nodes.Slice("x", "y", 1, 1, None, 1),
        nodes.Slice("x", "y", -1, 0, -1, 2),
        nodes.Slice("x", "y", 2, -2, 100, 1),
        nodes.Slice("x", "y", 3, 5, 2, 1),
        nodes.Pad("x", "y", ((1, 2),)),
        nodes.Pad("x", "y", ((0, 1), (2, 0), (3, 3))),
        nodes.Clamp("x", "y", 100, 200),
        nodes.Clamp("x", "y", 5, 5),
    ],
)
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_movement(node: nodes.Node, batch: int, generator: torch.Generator) -> None:
    for zero_point in (0, 31, 255):
        x = edge(0.02, zero_point)
        if batch or not (isinstance(node, nodes.Reshape) and node.shape == (-1, 4)):
            one(node, {"x": x, "y": x}, x=random_codes((batch, 3, 4, 3), x, generator))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int, generator: torch.Generator) -> None:
    x = edge(0.02, 7)
    names, steps = codes_in("a", "b", rank=3)
    join = nodes.Concat(("a", "b", "a"), "y", axis)
    model = IntegerProgram(names, (*steps, join, nodes.Dequantize("y", "v")), dict.fromkeys("aby", x), "v", "onnxruntime")
    shapes = [[2, 3, 4], [2, 3, 4]]
    shapes[1][axis] = 5
    codes = [random_codes(tuple(shape), x, generator) for shape in shapes]
    got = agree(model, **{f"{name}.value": values_of(c, x) for name, c in zip("ab", codes, strict=True)})
    assert torch.equal(got["y"].long(), torch.cat([codes[0], codes[1], codes[0]], axis))
