"""One row says what a runtime may make of a kind of node, and every dialect writes every kind."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch

from tests.programs import edge, program, residual_net
from truequant.integer import Int8Model, IntegerProgram, ProgramInput, nodes
from truequant.integer.nodes import Add, Conv, Linear, MaxPool, Node, Sub, Table, WeightOnlyLinear
from truequant.runtimes import FORMS, RUNTIMES, onnx_bytes
from truequant.runtimes.onnx.dialect import PLAIN, write
from truequant.runtimes.onnx.forms import FormName, Layout
from truequant.runtimes.onnx.kernels import COMPUTING, INTEGER, KERNELS
from truequant.runtimes.onnx.nodes import WRITERS
from truequant.runtimes.onnxruntime.census import INEXACT
from truequant.runtimes.onnxruntime.dialect import ONNXRUNTIME
from truequant.runtimes.onnxruntime.session import run, session
from truequant.runtimes.openvino.dialect import FORM as OPENVINO

KINDS = set(nodes.NODE_TYPES)


def test_each_kind_of_node_has_a_row_and_a_writer() -> None:
    assert set(KERNELS) == set(WRITERS) == KINDS
    for dialect in (PLAIN, ONNXRUNTIME, OPENVINO.dialect):
        assert set(dialect.writers) < KINDS


def test_what_the_rows_say() -> None:
    assert KERNELS[Conv].exact == {"QLinearConv", "ConvInteger"}
    assert KERNELS[Linear].exact == {"QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
    assert KERNELS[Add].exact == {"QLinearAdd", "GatherElements"}
    assert KERNELS[Sub].exact == {"GatherElements"}
    assert KERNELS[Table].exact == {"GatherElements", "QuantizeLinear"}
    assert KERNELS[MaxPool].exact == {"MaxPool", "NhwcMaxPool"}
    assert KERNELS[nodes.Reshape].exact == KERNELS[nodes.Pad].exact == frozenset()
    assert set(COMPUTING) == {
        Conv, Linear, Add, Sub, nodes.MatMul, nodes.Mul, nodes.AveragePool, nodes.GlobalAverage,
    }  # fmt: skip
    widened = {kind for kind, row in KERNELS.items() if row.wide_as_values}
    assert widened == {*COMPUTING, MaxPool, nodes.Pad, nodes.PadRepeated, nodes.Upsample}
    assert not INTEGER & {"GatherElements", "Gather", "MaxPool", ""}
    assert "QLinearAveragePool" in INTEGER


def test_no_row_takes_an_inexact_kernel_for_an_exact_one() -> None:
    for row in KERNELS.values():
        assert not row.exact & INEXACT
        assert set(row.floats) <= INEXACT
    assert KERNELS[WeightOnlyLinear].floats == ("MatMulNBits",)


def test_a_form_is_a_layout_in_a_dialect() -> None:
    assert tuple(FORMS) == get_args(FormName)
    assert set(RUNTIMES["onnxruntime"].forms) == set(get_args(Layout))
    here = residual_net()
    elsewhere = dataclasses.replace(here, target="tensorrt")
    for name, form in FORMS.items():
        assert form(here).name == form(elsewhere).name == name
    assert {name: form(here).dialect.name for name, form in FORMS.items()} == {
        "qdq": "onnxruntime", "qoperator": "onnxruntime", "openvino": "openvino",
    }  # fmt: skip
    assert {name: form(elsewhere).dialect.name for name, form in FORMS.items()} == {
        "qdq": "plain", "qoperator": "plain", "openvino": "openvino",
    }  # fmt: skip


@pytest.mark.parametrize("name", get_args(Layout))
def test_integer_kernels_by_name_are_those_of_the_rows(name: str) -> None:
    net = residual_net()
    written = {node.name: node.op_type for node in write(FORMS[name](net), net).nodes}
    for node in net.nodes:
        row, op = KERNELS[type(node)], written.get(node.output, written.get(f"{node.output}.pooled"))
        if type(node) in COMPUTING:
            assert op in {row.integer if name == "qoperator" else row.op, row.table}, node.output


def test_a_difference_has_no_kernel_by_name() -> None:
    """No runtime subtracts codes: where none runs here that could be asked, the file says dequantize, subtract, quantize."""
    one = program(Sub("a", "b", "y", 0, 255), {name: edge(0.02) for name in "aby"}, "a", "b")
    elsewhere = dataclasses.replace(one, target="tensorrt")
    ops = [node.op_type for node in write(FORMS["qoperator"](elsewhere), elsewhere).nodes]
    assert ops.count("Sub") == 1
    assert "QLinearSub" not in ops


@pytest.mark.parametrize(
    "moving", [nodes.Upsample("x", "y", (2, 3)), nodes.Transpose("x", "y", (0, 1, 3, 2)), nodes.Slice("x", "y", 3, 1, None, 2)]
)
@pytest.mark.parametrize("form", FORMS)
def test_values_between_islands_move_as_they_are(moving: Node, form: str) -> None:
    values = IntegerProgram((ProgramInput("x", "float32", (None, 2, 4, 5)),), (moving,), {}, "y", "onnxruntime")
    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    found = run(session(onnx_bytes(values, form=form)), {"x": x})["y"]  # type: ignore[arg-type]
    assert torch.equal(found, Int8Model(values)(x))
