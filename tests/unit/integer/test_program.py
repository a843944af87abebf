"""A program that cannot be run is refused when it is made, by name."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
import torch

from tests.programs import codes_in, edge, f32, random_conv, random_linear
from truequant.errors import ConversionError
from truequant.integer import IntegerProgram, ProgramInput, program_shapes
from truequant.integer import nodes as families
from truequant.integer.nodes import (
    NODE_TYPES,
    Add,
    Clamp,
    Concat,
    Dequantize,
    Edge,
    GlobalAverage,
    Island,
    MatMul,
    MaxPool,
    Mul,
    Node,
    Pad,
    Quantize,
    Reshape,
    Slice,
    Table,
    Transpose,
)
from truequant.integer.nodes.islands import MAX_ARGUMENT

SAME = edge(0.5, 3)
GENERATOR = torch.Generator().manual_seed(0)
CONV = random_conv(GENERATOR, "x", "y", (4, 2, 3, 3), padding=1)
LINEAR = random_linear(GENERATOR, "x", "y", 4, 2)
TABLE = Table("x", "y", torch.zeros(256, dtype=torch.int16), "zero")
POOL = MaxPool("x", "y", (2, 2), (2, 2), (0, 0), (1, 1), False)


def build(node: Node, x: Edge = SAME, y: Edge = SAME) -> IntegerProgram:
    inputs, nodes = codes_in("x")
    return IntegerProgram(inputs, (*nodes, node, Dequantize("y", "out")), {"x": x, "y": y}, "out", "onnxruntime")


def refuse(node: Node, *lines: str, x: Edge = SAME, y: Edge = SAME) -> None:
    with pytest.raises(ConversionError) as caught:
        build(node, x, y)
    for line in lines:
        assert line in str(caught.value)


def test_the_honest_nodes_of_these_tests_are_accepted() -> None:
    for node in (CONV, LINEAR, TABLE, POOL, Clamp("x", "y", 0, 255)):
        assert build(node).census()[type(node).__name__] == 1


def changed(node: Node, **fields: Any) -> Node:
    return replace(node, **fields)


LIES: dict[str, tuple[Node, str]] = {
    "float weight": (
        changed(CONV, weight=CONV.weight.float()),
        "Conv 'y': weight has a wrong dtype\n  got:      torch.float32\n  expected: torch.int8",
    ),
    "unsigned weight": (changed(CONV, weight=CONV.weight.to(torch.uint8)), "Conv 'y': weight has a wrong dtype"),
    "wide bias": (
        changed(LINEAR, bias=LINEAR.bias.long()),
        "Linear 'y': bias has a wrong dtype\n  got:      torch.int64\n  expected: torch.int32",
    ),
    "short bias": (changed(CONV, bias=CONV.bias[:3]), "Conv 'y': bias of a wrong shape\n  got:      (3,)\n  expected: (4,)"),
    "double scale": (changed(CONV, weight_scale=CONV.weight_scale.double()), "weight_scale has a wrong dtype"),
    "two scales": (
        changed(CONV, weight_scale=CONV.weight_scale[:2]),
        "weight_scale of a wrong shape\n  got:      (2,)\n  expected: (4,) or (1,)",
    ),
    "zero scale": (changed(CONV, weight_scale=torch.zeros(4)), "Conv 'y': weight_scale cannot be"),
    "negative scale": (changed(CONV, weight_scale=-CONV.weight_scale), "Conv 'y': weight_scale cannot be"),
    "nan scale": (changed(LINEAR, weight_scale=torch.full((1,), math.nan)), "Linear 'y': weight_scale cannot be"),
    "infinite scale": (changed(LINEAR, weight_scale=torch.full((1,), math.inf)), "Linear 'y': weight_scale cannot be"),
    "subnormal scale": (changed(LINEAR, weight_scale=torch.full((1,), 1e-40)), "positive, normal float32"),
    "empty weight": (changed(CONV, weight=CONV.weight[:, :0]), "Conv 'y': weight is empty"),
    "flat weight": (
        changed(LINEAR, weight=CONV.weight),
        "Linear 'y': weight of a wrong shape\n  got:      (4, 2, 3, 3)\n  expected: (out, in)",
    ),
    "one stride": (changed(CONV, stride=(1,)), "disagree about the number of spatial axes"),
    "zero stride": (changed(CONV, stride=(0, 1)), "Conv 'y': stride out of range\n  got:      (0, 1)"),
    "negative padding": (changed(CONV, padding=((0, 0), (-1, 0))), "Conv 'y': padding out of range"),
    "huge dilation": (changed(CONV, dilation=(2**40, 1)), "Conv 'y': dilation out of range"),
    "groups": (changed(CONV, groups=3), "Conv 'y': 4 channels do not make 3 groups"),
    "no groups": (changed(CONV, groups=0), "4 channels do not make 0 groups"),
    "low above high": (
        changed(CONV, low=7, high=6),
        "Conv 'y': clamped to codes that its edge lacks\n  got:      7 … 6\n  expected: 0 … 255",
    ),
    "high out of range": (changed(LINEAR, high=256), "clamped to codes that its edge lacks"),
    "add clamp": (Add("x", "x", "y", "onnxruntime", -1, 255), "Add 'y': clamped to codes"),
    "add rule": (Add("x", "x", "y", "magic", 0, 255), "Add 'y': no such rule\n  got:      'magic'"),
    "mul rule": (Mul("x", "x", "y", "magic", 0, 255), "Mul 'y': no such rule"),
    "table of int8": (changed(TABLE, entries=TABLE.entries.to(torch.int8)), "Table 'y': entries has a wrong dtype"),
    "short table": (
        changed(TABLE, entries=TABLE.entries[1:]),
        "Table 'y': entries of a wrong shape\n  got:      (255,)\n  expected: (256,)",
    ),
    "table entry": (
        changed(TABLE, entries=TABLE.entries + 256),
        "entries outside the output's codes\n  got:      256 … 256\n  expected: 0 … 255",
    ),
    "positive axis": (GlobalAverage("x", "y", (2, -1), False, 0, 255), "GlobalAverage 'y': impossible axes"),
    "axis twice": (GlobalAverage("x", "y", (-1, -1), False, 0, 255), "GlobalAverage 'y': impossible axes"),
    "no axes": (GlobalAverage("x", "y", (), False, 0, 255), "GlobalAverage 'y': impossible axes"),
    "pool ranks": (changed(POOL, stride=(2,)), "MaxPool 'y': kernel, stride, padding and dilation disagree"),
    "pool kernel": (changed(POOL, kernel=(0, 2)), "MaxPool 'y': kernel out of range"),
    "pool window": (changed(POOL, kernel=(2**30, 2)), "MaxPool 'y': a window too large"),
    "pool padding": (changed(POOL, padding=(2, 0)), "MaxPool 'y': padding larger than half the window"),
    "two open sizes": (Reshape("x", "y", (-1, -1)), "Reshape 'y': more than one size left open"),
    "negative size": (Reshape("x", "y", (0, -2)), "Reshape 'y': shape out of range"),
    "no permutation": (Transpose("x", "y", (0, 0, 1, 2)), "Transpose 'y': not a permutation"),
    "backwards": (Slice("x", "y", 0, 0, None, -1), "Slice 'y': step out of range"),
    "cropping": (Pad("x", "y", ((-1, 0),)), "Pad 'y': padding out of range"),
    "nothing to join": (Concat((), "y", 0), "Concat 'y': nothing to join"),
    "clamp": (Clamp("x", "y", 5, 256), "Clamp 'y': clamped to codes that its edge lacks"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_node_that_lies(lie: str) -> None:
    refuse(*LIES[lie])


@pytest.mark.parametrize(
    "node",
    [POOL, Clamp("x", "y", 0, 255), Reshape("x", "y", (0, -1)), Transpose("x", "y", (0, 1, 2, 3)), Pad("x", "y", ((1, 1),))],
)
def test_movement_keeps_scale_and_zero_point(node: Node) -> None:
    refuse(node, f"{type(node).__name__} 'y' moves codes but changes their meaning", y=edge(0.25, 3))
    refuse(node, "moves codes but changes their meaning", y=edge(0.5, 4))
    if not isinstance(node, Clamp):
        refuse(
            node, "input codes that the output cannot hold\n  got:      0 … 255\n  expected: 0 … 15", y=edge(0.5, 3, (0, 15))
        )


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (Edge(0.0, 0, 0, 255), "edge 'y': a scale that cannot be"),
        (Edge(-1.0, 0, 0, 255), "a scale that cannot be"),
        (Edge(math.nan, 0, 0, 255), "a scale that cannot be"),
        (Edge(math.inf, 0, 0, 255), "a scale that cannot be"),
        (Edge(1e-40, 0, 0, 255), "a scale that cannot be"),
        (Edge(2.0**128 * (1 - 2.0**-40), 0, 0, 255), "a scale that cannot be"),
        (Edge(0.1, 0, 0, 255), "a scale that cannot be\n  got:      0.1\n  expected: a positive, normal float32"),
        (Edge(1.0, 256, 0, 255), "edge 'y': real 0 has no code\n  got:      zero point 256\n  expected: 0 … 255"),
        (Edge(1.0, -1, 0, 255), "real 0 has no code"),
        (Edge(1.0, 0, 0, 0), "edge 'y': impossible codes"),
        (Edge(1.0, 0, 0, 65536), "impossible codes\n  got:      0 … 65536\n  expected: within -32768 … 65535"),
        (Edge(1.0, 0, -32769, 0), "impossible codes"),
    ],
)
def test_an_edge_that_cannot_be(bad: Edge, line: str) -> None:
    refuse(LINEAR, line, y=bad)


def test_an_argument_of_the_greatest_length() -> None:
    def island(length: int) -> Island:
        return Island(("x",), "y", "softmax.int", ('{"input":0}', " " * (length - 1) + "0"), (), ())

    island(MAX_ARGUMENT).check({})
    with pytest.raises(ConversionError, match="an argument too long"):
        island(MAX_ARGUMENT + 1).check({})


def test_scales_whose_ratio_overflows() -> None:
    tiny, huge = edge(2.0**-64), edge(2.0**64)
    refuse(Add("x", "x", "y", "onnxruntime", 0, 255), "Add 'y': scales too far apart for float32", x=huge, y=tiny)
    refuse(GlobalAverage("x", "y", (-1,), False, 0, 255), "scales too far apart", x=huge, y=tiny)
    refuse(MatMul("x", "x", "y", 0, 255), "MatMul 'y': scales too far apart", x=huge, y=tiny)
    refuse(
        changed(LINEAR, weight_scale=torch.full((1,), 2.0**10)), "the multiplier sx * sw / sy overflows float32", x=huge, y=tiny
    )
    refuse(changed(LINEAR, weight_scale=torch.full((1,), 2.0**-70)), "Linear 'y': weight_scale cannot be", x=tiny)


def test_the_graph_is_single_assignment_and_complete() -> None:
    inputs, nodes = codes_in("x")
    edges = {"x": SAME, "y": SAME}

    def refused(line: str, nodes: tuple[Node, ...], edges: dict[str, Edge] = edges, outputs: object = "out") -> None:
        with pytest.raises(ConversionError) as caught:
            IntegerProgram(inputs, nodes, edges, outputs, "onnxruntime")
        assert line in str(caught.value)

    last = Dequantize("y", "out")
    refused("Linear 'y' reads 'x' before anything wrote it", (LINEAR, *nodes, last))
    refused("Linear 'y' writes a name that exists already", (*nodes, LINEAR, LINEAR, last))
    refused("Quantize 'y' reads 'x'\n  expected: a value", (*nodes, Quantize("x", "y"), last))
    refused("Dequantize 'out' reads 'x.value'\n  expected: an edge of codes", (*nodes, LINEAR, Dequantize("x.value", "out")))
    refused("Quantize 'z' writes no edge", (*nodes, LINEAR, Quantize("x.value", "z"), last))
    refused("Dequantize 'y' writes a value, which has no codes", (*nodes, Dequantize("x", "y"), last))
    refused("edge 'z' is written by no node", (*nodes, LINEAR, last), edges | {"z": SAME})
    refused("output 'y' is not a value of the program", (*nodes, LINEAR, last), outputs="y")
    refused("output 'z' is not a value of the program", (*nodes, LINEAR, last), outputs=["out", {"dict": {"a": "z"}}])
    join = Concat(("x", "y"), "z", 0)
    refused("Concat 'z': its edges differ", (*nodes, LINEAR, join, last), edges | {"y": edge(0.25, 3), "z": SAME})


def test_inputs_are_values_of_their_own() -> None:
    for inputs, line in (
        ((ProgramInput("x", "float32", (1,)), ProgramInput("x", "float32", (1,))), "input 'x' is not a value of its own"),
        ((ProgramInput("e", "float32", (1,)),), "input 'e' is not a value of its own"),
        ((ProgramInput("x", "complex64", (1,)),), "input 'x': no such dtype\n  got:      'complex64'"),
        ((ProgramInput("x", "_inductor", (1,)),), "no such dtype"),
    ):
        with pytest.raises(ConversionError) as caught:
            IntegerProgram(inputs, (Quantize("x", "e"), Dequantize("e", "y")), {"e": SAME}, "y", "onnxruntime")
        assert line in str(caught.value)


def test_outputs_and_census() -> None:
    inputs, nodes = codes_in("x")
    tree = [{"tuple": ["out", None, 3]}, {"dict": {"a": "out", "b": {"tuple": ["x.value"]}}}]
    model = IntegerProgram(inputs, (*nodes, Dequantize("x", "out")), {"x": SAME}, tree, "onnxruntime")
    assert model.output_names() == ("out", "out", "x.value")
    assert model.census() == {"Dequantize": 1, "Quantize": 1}


SHAPES: list[tuple[Node, tuple[int, ...], str]] = [
    (
        CONV,
        (1, 3, 8, 8),
        "Conv 'y' cannot read its input\n  got:      shape (1, 3, 8, 8)\n  expected: 4 axes, 2 channels on axis 1",
    ),
    (CONV, (2, 8, 8), "4 axes, 2 channels on axis 1"),
    (CONV, (1, 2, 8, 0), "room for a window of (3, 3)"),
    (LINEAR, (1, 3), "Linear 'y' cannot read its input\n  got:      shape (1, 3)\n  expected: a last axis of 2"),
    (LINEAR, (), "a last axis of 2"),
    (POOL, (2, 8), "more than 2 axes"),
    (POOL, (1, 2, 1, 8), "room for a window of (2, 2)"),
    (GlobalAverage("x", "y", (-3,), True, 0, 255), (4, 4), "axes (-3,)"),
    (GlobalAverage("x", "y", (-1,), True, 0, 255), (4, 0), "something to average"),
    (Reshape("x", "y", (0, 5)), (2, 6), "elements for (0, 5)"),
    (Reshape("x", "y", (4, -1)), (2, 7), "elements for (4, -1)"),
    (Reshape("x", "y", (-1, 0, 0)), (2, 6), "axes to keep for (-1, 0, 0)"),
    (Transpose("x", "y", (1, 0)), (2, 6, 1), "2 axes"),
    (Slice("x", "y", 2, 0, 1, 1), (2, 6), "an axis 2"),
    (Pad("x", "y", ((1, 1), (1, 1))), (6,), "at least 2 axes"),
]


@pytest.mark.parametrize("case", range(len(SHAPES)))
def test_shapes_that_do_not_fit(case: int) -> None:
    node, shape, line = SHAPES[case]
    with pytest.raises(ConversionError) as caught:
        program_shapes(build(node), {"x.value": shape})
    assert line in str(caught.value)


def test_an_average_may_read_every_axis() -> None:
    node = GlobalAverage("x", "y", (-1, -2), False, 0, 255)
    assert program_shapes(build(node), {"x.value": (4, 5)})["y"] == ()


def test_operands_that_do_not_fit() -> None:
    inputs, nodes = codes_in("a", "b")
    edges = dict.fromkeys("aby", SAME)
    for node, line in (
        (Add("a", "b", "y", "onnxruntime", 0, 255), "Add 'y' cannot join its inputs\n  got:      shapes (2, 3) and (2, 4)"),
        (Concat(("a", "b"), "y", 0), "Concat 'y' cannot join its inputs\n  got:      shapes [(2, 3), (2, 4)]"),
    ):
        model = IntegerProgram(inputs, (*nodes, node, Dequantize("y", "out")), edges, "out", "onnxruntime")
        with pytest.raises(ConversionError) as caught:
            program_shapes(model, {"a.value": (2, 3), "b.value": (2, 4)})
        assert line in str(caught.value)


@pytest.mark.parametrize("kind", NODE_TYPES)
def test_every_kind_of_node_says_what_it_is_at_home(kind: type[Node]) -> None:
    for method in ("reads", "check", "output_shape", "run"):
        assert getattr(kind, method) is not getattr(Node, method), method


def test_every_kind_of_node_is_known() -> None:
    """A kind that is missing from the list can be run, but neither saved nor loaded."""
    files = [import_module(f"{families.__name__}.{found.name}") for found in iter_modules(families.__path__)]
    classes = {value for file in files for value in vars(file).values() if isinstance(value, type) and issubclass(value, Node)}
    kinds = [kind for kind in classes if not any(other is not kind and issubclass(other, kind) for other in classes)]
    assert sorted(kinds, key=repr) == sorted(NODE_TYPES, key=repr)


def test_scales_are_float32_numbers() -> None:
    assert f32(0.1) != 0.1
    build(LINEAR, y=edge(0.1))
