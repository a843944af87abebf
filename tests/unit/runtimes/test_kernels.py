"""One row says what a runtime may make of a kind of node, and every dialect writes every kind."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from tests.programs import residual_net
from truequant.integer import nodes
from truequant.integer.nodes import Add, Conv, Linear, MaxPool, Node, Sub, Table, WeightOnlyLinear
from truequant.runtimes import FORMS, RUNTIMES
from truequant.runtimes.onnx.dialect import PLAIN, write
from truequant.runtimes.onnx.forms import FormName, Layout
from truequant.runtimes.onnx.kernels import COMPUTING, INTEGER, KERNELS
from truequant.runtimes.onnx.nodes import WRITERS
from truequant.runtimes.onnxruntime.census import INEXACT
from truequant.runtimes.onnxruntime.dialect import ONNXRUNTIME
from truequant.runtimes.openvino.dialect import FORM as OPENVINO

KINDS = set(get_args(Node))


def test_each_kind_of_node_has_a_row_and_a_writer() -> None:
    assert set(KERNELS) == set(WRITERS) == KINDS
    for dialect in (PLAIN, ONNXRUNTIME, OPENVINO.dialect):
        assert set(dialect.writers) < KINDS


def test_what_the_rows_say() -> None:
    assert KERNELS[Conv].exact == {"QLinearConv", "ConvInteger"}
    assert KERNELS[Linear].exact == {"QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
    assert KERNELS[Add].exact == {"QLinearAdd", "GatherElements"}
    assert KERNELS[Sub].exact == KERNELS[Table].exact == {"GatherElements"}
    assert KERNELS[MaxPool].exact == {"MaxPool", "NhwcMaxPool"}
    assert KERNELS[nodes.Reshape].exact == KERNELS[nodes.Pad].exact == frozenset()
    assert set(COMPUTING) == {
        Conv, Linear, Add, Sub, nodes.MatMul, nodes.Mul, nodes.AveragePool, nodes.GlobalAverage,
    }  # fmt: skip
    widened = {kind for kind, row in KERNELS.items() if row.wide_as_values}
    assert widened == {*COMPUTING, MaxPool, nodes.Pad, nodes.Upsample}
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
    program = residual_net()
    written = {node.name: node.op_type for node in write(FORMS[name](program), program).nodes}
    for node in program.nodes:
        row, op = KERNELS[type(node)], written.get(node.output, written.get(f"{node.output}.pooled"))
        if type(node) in COMPUTING:
            assert op in {row.integer if name == "qoperator" else row.op, row.table}, node.output
