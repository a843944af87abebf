"""Difference, rows of codes, places, repeats and transposed convolutions: oracle = reference = onnxruntime, by equality."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.interpret import interpret
from tests.programs import S8, U8, codes_in, edge, program, random_codes, values_of
from truequant.errors import ConversionError
from truequant.integer import Int8Model, IntegerProgram, ProgramInput
from truequant.integer.nodes import DepthToSpace, Dequantize, Edge, Lookup, Reshape, Sub, Take, Transpose, Upsample
from truequant.runtimes import CompiledModel, EdgeReader
from truequant.transform.subpixel import sub_pixel

A, B = (v.flatten() for v in torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"))


def sized(p: IntegerProgram, inputs: tuple[Tensor, ...]) -> IntegerProgram:
    known = tuple(ProgramInput(i.name, i.dtype, (None, *x.shape[1:]), i.keyword) for i, x in zip(p.inputs, inputs, strict=True))
    return IntegerProgram(known, p.nodes, p.edges, p.outputs, p.target)


def agree(p: IntegerProgram, *inputs: Tensor) -> dict[str, Tensor]:
    """Codes of every edge after oracle, reference and onnxruntime agreed on them."""
    p = sized(p, inputs)
    said = interpret(p, {i.name: x for i, x in zip(p.inputs, inputs, strict=True)})
    found, shipped = Int8Model(p).codes(*inputs), EdgeReader(p).codes(*inputs)
    for name, codes in found.items():
        assert np.array_equal(codes.numpy(), said[name]), name
        assert torch.equal(codes.int(), shipped[name].int()), name
    assert torch.equal(Int8Model(p)(*inputs), CompiledModel(p)(*inputs))
    return found


@pytest.mark.parametrize(
    "edges",
    [
        (edge(0.02, 128), edge(0.03, 100), edge(0.05, 120)),
        (edge(0.5, 3), edge(0.5, 9), edge(1.0, 77)),  # every odd difference is a tie
        (edge(0.013, 0, S8), edge(0.02, -5, S8), edge(0.011, 7, S8)),
    ],
)
def test_all_pairs_of_a_difference(edges: tuple[Edge, Edge, Edge]) -> None:
    a, b, y = edges
    p = program(Sub("a", "b", "y", y.qmin, y.qmax), {"a": a, "b": b, "y": y}, "a", "b", rank=1)
    agree(p, values_of(A + a.qmin, a), values_of(B + b.qmin, b))


def test_a_difference_is_not_its_opposite() -> None:
    a, b, y = edge(0.02, 128), edge(0.02, 128), edge(0.04, 128)
    p = program(Sub("a", "b", "y", *U8), {"a": a, "b": b, "y": y}, "a", "b", rank=1)
    assert agree(p, torch.tensor([1.0]), torch.tensor([0.2]))["y"].item() == 128 + 20


@pytest.mark.parametrize(
    "node",
    [
        Take("x", "y", 1, (3, 0, 0, 2)), Take("x", "y", 3, (5,)), Upsample("x", "y", (2, 3)), Upsample("x", "y", (4,)),
        DepthToSpace("x", "y", (2, 2)), DepthToSpace("x", "y", (1, 4)), DepthToSpace("x", "y", (4, 1)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("x", [edge(0.05, 77), edge(0.05, 3, S8)], ids=["u8", "s8"])
def test_codes_that_move(node: Take, x: Edge) -> None:
    codes = random_codes((2, 4, 5, 6), x, torch.Generator().manual_seed(0))
    agree(program(node, {"x": x, "y": x}, "x"), values_of(codes, x))


def test_depth_to_space_is_pixel_shuffle() -> None:
    x = edge(1.0, 0)
    codes = random_codes((2, 8, 3, 5), x, torch.Generator().manual_seed(0))
    found = agree(program(DepthToSpace("x", "y", (2, 2)), {"x": x, "y": x}, "x"), values_of(codes, x))["y"]
    assert torch.equal(found.float(), F.pixel_shuffle(codes.float(), 2))


def test_values_move_as_codes_do() -> None:
    """The same nodes between two float values: no edge, no rounding."""
    inputs = (ProgramInput("x", "float32", (None, 3, 4)),)
    nodes = (Transpose("x", "turned", (0, 2, 1)), Reshape("turned", "flat", (0, -1)), Take("flat", "y", 1, (11, 0, 4)))
    p = IntegerProgram(inputs, nodes, {}, "y", "onnxruntime")
    x = torch.randn(5, 3, 4)
    expected = x.transpose(1, 2).flatten(1)[:, [11, 0, 4]]
    assert torch.equal(Int8Model(p)(x), expected)
    assert torch.equal(CompiledModel(p)(x), expected)


def looked_up(ids: Tensor) -> Int8Model:
    y = edge(0.1, 3)
    entries = torch.arange(20, dtype=torch.uint8).reshape(5, 4)
    nodes = (Lookup("ids", "rows", entries), Dequantize("rows", "y"))
    return Int8Model(IntegerProgram((ProgramInput("ids", "int64", (None,)),), nodes, {"rows": y}, "y", "onnxruntime"))


def test_rows_of_codes() -> None:
    ids = torch.tensor([4, 0, 4, 2])
    model = looked_up(ids)
    assert torch.equal(model.codes(ids)["rows"].int(), torch.arange(20).reshape(5, 4)[ids].int())
    assert torch.equal(model(ids), CompiledModel(model.program)(ids))


@pytest.mark.parametrize("wrong", [5, -1])
def test_a_row_that_does_not_exist_is_refused(wrong: int) -> None:
    with pytest.raises(ConversionError, match="no such row"):
        looked_up(torch.tensor([0]))(torch.tensor([0, wrong]))


def test_moving_nodes_refuse_what_cannot_be() -> None:
    inputs, quantizers = codes_in("x")
    x = edge(1.0, 0)
    for node, said in (
        (Take("x", "y", 1, ()), "nothing to take"), (Take("x", "y", 1, (-1,)), "indices out of range"),
        (Upsample("x", "y", (0,)), "factors out of range"), (DepthToSpace("x", "y", ()), "no block"),
    ):  # fmt: skip
        with pytest.raises(ConversionError, match=said):
            IntegerProgram(inputs, (*quantizers, node, Dequantize("y", "z")), {"x": x, "y": x}, "z", "onnxruntime")


# kernel, stride, padding, output padding, dilation
SETTINGS = [
    (k, s, p, extra, d)
    for k, s, p, extra, d in itertools.product((1, 2, 3, 4), (1, 2, 3), (0, 1, 2), (0, 1), (1, 2))
    if p <= d * (k - 1) and extra < max(s, d)
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_transposed_convolution_is_one_convolution_and_a_move(setting: tuple[int, int, int, int, int]) -> None:
    """Against torch's own, on integers, in one and in two dimensions at once (the second axis has other arguments)."""
    kernel, stride, padding, extra, dilation = setting
    generator = torch.Generator().manual_seed(sum(setting))
    x = torch.randint(-9, 10, (2, 3, 5, 4), generator=generator).double()
    weight = torch.randint(-9, 10, (3, 2, kernel, 3), generator=generator).double()
    rest = ((stride, 2), (padding, 1), (extra, 1), (dilation, 1))
    strides, paddings, extras, dilations = rest
    expected = F.conv_transpose2d(x, weight, None, strides, paddings, extras, 1, dilations)
    form = sub_pixel(weight.transpose(0, 1), strides, paddings, extras, dilations)
    assert min(n for pair in (*form.padding, *form.crop) for n in pair) >= 0
    sides = [n for pair in reversed(form.padding) for n in pair]
    sums = F.conv2d(F.pad(x, sides), form.weight)
    n, c, h, w = sums.shape
    a, b = strides
    wide = sums.reshape(n, c // (a * b), a, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, h * a, w * b)
    (top, bottom), (left, right) = form.crop
    assert torch.equal(wide[:, :, top : wide.shape[2] - bottom, left : wide.shape[3] - right], expected)


class Up(nn.Module):
    def __init__(self, **options: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.ConvTranspose2d(6, 4, 3, 2, bias=False, **options), nn.BatchNorm2d(4)
        self.line, self.out = nn.ConvTranspose1d(4, 4, 4, 3, 1), nn.ConvTranspose3d(1, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        y = self.line(y.flatten(2))
        return self.out(y[:, None, :, None])


@pytest.mark.parametrize("preset", ["w8a8", "w8a8-per-tensor", "w8a8-pow2", "w4a4"])
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"padding": 1, "output_padding": 1, "dilation": 2}], ids=str)
def test_transposed_convolutions_train_and_ship(preset: str, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 5, 4)
    qat = tq.prepare(Up(**options), x, preset)
    optimizer = torch.optim.SGD(qat.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        qat(torch.randn(3, 6, 5, 4)).square().mean().backward()
        optimizer.step()
    assert all(bool(p.grad.abs().sum() > 0) for p in qat.parameters() if p.dim() > 1 and p.grad is not None)
    qat.eval()
    int8 = tq.convert(qat)
    assert int8.ops()["Conv"] == 3
    report = tq.verify(qat, int8, [x, torch.randn(1, 6, 5, 4)])
    assert report.codes_different == 0
    assert report.outputs_different == 0
