"""onnxruntime, with all its optimizations, computes what the integer program computes: every op, integers by equality."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.programs import S8, U8, codes_in, edge, f32, program, random_codes, random_conv, random_linear, values_of
from truequant import numerics
from truequant.errors import ExportError
from truequant.integer import Int8Model, IntegerProgram, ProgramInput
from truequant.integer.nodes import (
    Add,
    Clamp,
    Concat,
    Conv,
    Dequantize,
    Edge,
    GlobalAverage,
    Linear,
    MaxPool,
    Mul,
    Pad,
    Reshape,
    Slice,
    Table,
    Transpose,
)
from truequant.runtimes import CompiledModel, EdgeReader, census, onnx_bytes
from truequant.runtimes.onnxruntime.pair_proofs import _runs_exactly

A, B = (v.flatten() for v in torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"))


def settings(count: int) -> list[tuple[Edge, Edge, Edge]]:
    """Random, power-of-two and tie-rich scales and zero points of two operands and a result."""
    random = np.random.default_rng(0)
    found = []
    for i in range(count):
        zeros = [int(z) for z in random.integers(0, 256, 3)]
        if i % 4 == 0:
            scales = [float(2.0 ** random.uniform(-8, 2)) for _ in range(3)]
        elif i % 4 == 1:
            scales = [float(2.0 ** random.integers(-6, 3)) for _ in range(3)]
        elif i % 4 == 2:  # sa = sb, sy = 2 sa: every odd sum is a tie
            scales = [1.0, 1.0, 2.0]
        else:
            scales, zeros = [0.5, 0.25, 1.0], [0, 0, 0] if i % 8 == 3 else zeros
        found.append(tuple(edge(f32(s), z) for s, z in zip(scales, zeros, strict=True)))
    return found  # type: ignore[return-value]


def sized(tensor: ProgramInput, x: Tensor) -> ProgramInput:
    """An input whose sizes are those of `x`, the batch dynamic."""
    return dataclasses.replace(tensor, shape=(None, *x.shape[1:]))


def assert_same(p: IntegerProgram, *inputs: Tensor) -> dict[str, int]:
    """Every edge and every output of reference and onnxruntime; the census of the shipped file."""
    p = dataclasses.replace(p, inputs=tuple(sized(i, x) for i, x in zip(p.inputs, inputs, strict=True)))
    model = Int8Model(p)
    expected, found = model.codes(*inputs), EdgeReader(p).codes(*inputs)
    for name, codes in expected.items():
        assert codes.shape == found[name].shape
        assert torch.equal(codes.int(), found[name].int()), name
    assert torch.equal(model(*inputs), CompiledModel(p)(*inputs))
    named = EdgeReader(p, form="qoperator", level="none").codes(*inputs)
    assert all(torch.equal(codes.int(), named[name].int()) for name, codes in expected.items())
    return census(onnx_bytes(p))


@pytest.mark.parametrize("kind", [Add, Mul])
@pytest.mark.parametrize("number", range(44))
def test_all_pairs_of_codes(kind: type[Add | Mul], number: int) -> None:
    """65,536 pairs, fused where the kernel computes the rule, from a table of all pairs where it does not."""
    a, b, y = settings(44)[number]
    low, high = (y.zero_point, 255) if number % 3 == 0 else U8
    node = kind("a", "b", "y", "onnxruntime", low, high)
    p = program(node, {"a": a, "b": b, "y": y}, "a", "b", rank=1)
    kernels = assert_same(p, values_of(A, a), values_of(B, b))
    fused = kernels.get("QLinearAdd", 0) + kernels.get("QLinearMul", 0)
    assert fused == 1 or kernels["GatherElements"] == 1


def test_the_fused_kernels_are_the_rule() -> None:
    """On this machine no setting needs the table: the named rules are what onnxruntime computes."""
    for kind, (a, b, y) in itertools.product(("Add", "Mul"), settings(12)):
        assert _runs_exactly(kind, a, b, y, 0, 255, "onnxruntime")  # type: ignore[arg-type]


def test_a_rule_that_the_kernel_does_not_compute_ships_as_a_table() -> None:
    a, b, y = edge(1.0, 3), edge(1.0, 5), edge(2.0, 7)
    node = Add("a", "b", "y", "portable", 0, 255)
    p = program(node, {"a": a, "b": b, "y": y}, "a", "b", rank=1)
    assert "QLinearAdd" not in assert_same(p, values_of(A, a), values_of(B, b))


@pytest.mark.parametrize(
    "function", [torch.sigmoid, torch.tanh, F.hardswish, F.hardsigmoid, F.silu, F.gelu, F.elu, F.leaky_relu]
)
@pytest.mark.parametrize(
    ("x", "y"), [(edge(0.05, 128), edge(0.01, 3)), (edge(0.0625, 100), edge(0.0625, 0)), (edge(0.5, 0), edge(2.0, 255))]
)
def test_tables_over_all_codes(function: object, x: Edge, y: Edge) -> None:
    params = [(torch.tensor(e.scale), torch.tensor(float(e.zero_point))) for e in (x, y)]
    entries = numerics.table(function, params[0], U8, params[1], 0, 255).to(torch.int16)  # type: ignore[arg-type]
    p = program(Table("x", "y", entries, "table"), {"x": x, "y": y}, "x", rank=1)
    assert_same(p, values_of(torch.arange(256), x))


@pytest.mark.parametrize("codes", [S8, (-7, 7), (-1, 1)])
def test_signed_tables(codes: tuple[int, int]) -> None:
    x, y = edge(0.05, 0, codes), edge(0.05, 0, (-5, 7))
    read = torch.arange(codes[0], codes[1] + 1)
    p = program(Table("x", "y", read.clamp(-5, 7).to(torch.int16), "clip"), {"x": x, "y": y}, "x", rank=1)
    assert_same(p, values_of(read, x))
    assert torch.equal(Int8Model(p).codes(values_of(read, x))["y"].int(), read.clamp(-5, 7).int())


CONVS = [
    {"weight_shape": (8, 3, 3, 3)},
    {"weight_shape": (8, 3, 3, 3), "stride": 2, "padding": 1},
    {"weight_shape": (6, 1, 3, 3), "groups": 6, "padding": 1},
    {"weight_shape": (6, 2, 3, 3), "groups": 3, "dilation": 2},
    {"weight_shape": (5, 4, 1, 1)},
    {"weight_shape": (4, 3, 2, 4), "padding": ((0, 1), (2, 1))},
    {"weight_shape": (4, 3, 5)},
    {"weight_shape": (4, 2, 2, 3, 2), "padding": 1},
    {"weight_shape": (8, 3, 3, 3), "per_tensor": True},
]


@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("batch", [1, 5])
def test_convolutions(case: dict[str, object], zero_point: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(zero_point + batch)
    shape = case["weight_shape"]
    assert isinstance(shape, tuple)
    x = edge(0.02, zero_point)
    for y, low, high in ((edge(0.7, 0), 0, 255), (edge(1.1, 37), 37, 255), (edge(0.25, 200), 180, 220)):
        conv = random_conv(generator, "x", "y", low=low, high=high, **case)  # type: ignore[arg-type]
        p = program(conv, {"x": x, "y": y}, "x", rank=len(shape))
        size = (batch, shape[1] * conv.groups, *(9 for _ in shape[2:]))
        assert "QLinearConv" in assert_same(p, values_of(random_codes(size, x, generator), x))


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_linear(axes: int) -> None:
    generator = torch.Generator().manual_seed(axes)
    x, y = edge(0.02, 77), edge(0.9, 11)
    node = random_linear(generator, "x", "y", 13, 24, low=11)
    p = program(node, {"x": x, "y": y}, "x", rank=axes)
    size = (4, *(3,) * (axes - 2), 24)
    assert "QGemm" in assert_same(p, values_of(random_codes(size, x, generator), x))


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_float_results(kind: str) -> None:
    """float32(acc) * float32(sx * sw), bit for bit."""
    generator = torch.Generator().manual_seed(9)
    x = edge(0.02, 130)
    node = random_conv(generator, "x", "y", (5, 3, 3, 3)) if kind == "conv" else random_linear(generator, "x", "y", 5, 30)
    size = (3, 3, 8, 8) if kind == "conv" else (3, 30)
    kernels = assert_same(program(node, {"x": x}, "x", rank=len(size)), values_of(random_codes(size, x, generator), x))
    assert {"ConvInteger", "MatMulInteger"} & set(kernels)


def test_accumulators_beyond_two_to_the_24() -> None:
    x, y = edge(0.02, 0), edge(6000.0, 0)
    weight = torch.full((4, 4000), 127, dtype=torch.int8)
    weight[1] *= -1
    node = Linear(
        "x", "y", weight, torch.full((4,), 0.02), torch.tensor([2**30, -(2**30), 12345, -1], dtype=torch.int32), 0, 255
    )
    p = program(node, {"x": x, "y": y}, "x", rank=2)
    generator = torch.Generator().manual_seed(0)
    codes = torch.cat(
        [random_codes((6, 4000), x, generator), torch.full((1, 4000), 255), torch.zeros(1, 4000, dtype=torch.int64)]
    )
    assert_same(p, values_of(codes, x))


@pytest.mark.parametrize(
    ("shape", "axes", "keepdim"),
    [
        ((4, 6, 5, 7), (-2, -1), True),
        ((4, 6, 5, 7), (-2, -1), False),
        ((4, 6, 9), (-1,), False),
        ((4, 6, 5, 7), (-3,), True),
        ((4, 10), (-1,), False),
        ((4, 3, 2, 5, 3), (-3, -2, -1), False),
        ((4, 8, 6), (-2,), False),
    ],
)
@pytest.mark.parametrize(
    ("x", "y"), [(edge(0.5, 3), edge(0.5, 3)), (edge(1.0, 0), edge(1.0, 0)), (edge(0.03, 128), edge(0.011, 60))]
)
def test_global_average(shape: tuple[int, ...], axes: tuple[int, ...], keepdim: bool, x: Edge, y: Edge) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    p = program(GlobalAverage("x", "y", axes, keepdim, 0, 255), {"x": x, "y": y}, "x", rank=len(shape))
    shape = (200, *shape[1:])
    assert "QLinearGlobalAveragePool" in assert_same(p, values_of(random_codes(shape, x, generator), x))


@pytest.mark.parametrize("window", [(2, 2), (3, 3), (2, 4), (5, 5)])
@pytest.mark.parametrize("scale", [0.5, 0.031])
def test_average_pooling_is_a_depthwise_layer_of_ones(window: tuple[int, int], scale: float) -> None:
    x = edge(scale, 77)
    count = math.prod(window)
    ones = torch.ones(3, 1, *window, dtype=torch.int8)
    zeros = torch.zeros(3, dtype=torch.int32)
    conv = Conv("x", "y", ones, torch.tensor([1.0 / count]), zeros, window, ((0, 0), (0, 0)), (1, 1), 3, 0, 255)
    generator = torch.Generator().manual_seed(0)
    assert_same(program(conv, {"x": x, "y": x}, "x"), values_of(random_codes((8, 3, 20, 20), x, generator), x))


MOVES = [
    MaxPool("x", "y", (2, 2), (2, 2), (0, 0), (1, 1), False),
    MaxPool("x", "y", (3, 3), (2, 2), (1, 1), (1, 1), True),
    MaxPool("x", "y", (3, 2), (1, 2), (1, 0), (2, 1), False),
    MaxPool("x", "y", (3, 2), (1, 2), (3, 0), (3, 1), False),
    Clamp("x", "y", 77, 200),
    Reshape("x", "y", (0, -1)),
    Reshape("x", "y", (0, 2, -1, 8)),
    Transpose("x", "y", (0, 2, 3, 1)),
    Slice("x", "y", 1, 1, 3, 1),
    Slice("x", "y", 3, 0, None, 2),
    Slice("x", "y", 2, -3, None, 1),
    Pad("x", "y", ((1, 0), (2, 3))),
]


@pytest.mark.parametrize("node", MOVES, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("x", [edge(0.05, 77), edge(0.05, 0, S8)], ids=["u8", "s8"])
def test_data_movement(node: MaxPool, x: Edge) -> None:
    if isinstance(node, Clamp) and x.signed:
        node = Clamp("x", "y", -7, 70)
    generator = torch.Generator().manual_seed(1)
    p = program(node, {"x": x, "y": x}, "x")
    assert_same(p, values_of(random_codes((3, 4, 9, 8), x, generator), x))


@pytest.mark.parametrize("x", [edge(0.05, 77), edge(0.05, 9, (5, 200)), edge(0.05, 0, S8)], ids=["u8", "narrow", "s8"])
def test_max_pool_window_in_the_padding_alone(x: Edge) -> None:
    """A dilated window can miss a short input: it holds the lowest code, which torch's negative infinity becomes."""
    p = program(MaxPool("x", "y", (2, 2), (1, 1), (2, 2), (3, 3), False), {"x": x, "y": x}, "x")
    assert_same(p, values_of(random_codes((2, 3, 1, 1), x, torch.Generator().manual_seed(3)), x))


def test_concat() -> None:
    x = edge(0.05, 77)
    inputs, quantizers = codes_in("a", "b")
    nodes = (*quantizers, Concat(("a", "b", "a"), "y", 1), Dequantize("y", "y.value"))
    p = IntegerProgram(inputs, nodes, {"a": x, "b": x, "y": x}, "y.value", "onnxruntime")
    generator = torch.Generator().manual_seed(2)
    assert_same(p, *(values_of(random_codes((3, c, 5, 5), x, generator), x) for c in (2, 4)))


def test_quantize_ties_infinities_and_nan() -> None:
    x = edge(0.5, 3)
    p = program(Clamp("x", "y", 0, 255), {"x": x, "y": x}, "x", rank=1)
    special = torch.tensor([0.25, 0.75, -0.25, 1.25, math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-45, 3e38, 127.25])
    assert_same(p, torch.cat([special, torch.linspace(-200, 200, 3203)]))


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime-vnni"])
def test_layers_that_can_saturate_ship_unsigned_weights(target: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = edge(0.02, 128), edge(1.0, 0)
    conv = random_conv(generator, "x", "y", (4, 3, 3, 3))
    p = program(conv, {"x": x, "y": y}, "x")
    p = dataclasses.replace(p, target=target, inputs=tuple(sized(i, torch.empty(1, 3, 8, 8)) for i in p.inputs))
    onnx = pytest.importorskip("onnx", reason="the extra onnxruntime is part of make setup")
    stored = {t.name: t.data_type for t in onnx.load_from_string(onnx_bytes(p)).graph.initializer}
    assert stored["y.weight"] == (onnx.TensorProto.UINT8 if target == "onnxruntime" else onnx.TensorProto.INT8)


def test_signed_activations_that_can_saturate_are_refused() -> None:
    generator = torch.Generator().manual_seed(4)
    x = edge(0.02, 0, S8)
    conv = random_conv(generator, "x", "y", (4, 3, 3, 3), low=-127, high=127)
    with pytest.raises(ExportError, match="'y' may saturate on CPUs without VNNI"):
        assert_same(program(conv, {"x": x, "y": x}, "x"), torch.zeros(1, 3, 8, 8))
