"""What export proves before it writes: tables entry by entry, and the optimized graph node by node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from tests.programs import codes_in, edge, program
from truequant.errors import ExportError
from truequant.integer import IntegerProgram, ProgramInput
from truequant.integer.nodes import Concat, Dequantize, MaxPool, Table
from truequant.runtimes import export_onnx, onnx_bytes, require_integer_kernels
from truequant.runtimes.onnxruntime.table_proofs import require_exact_tables

X, Y = edge(0.05, 100), edge(0.02, 3)
ENTRIES = torch.arange(255, -1, -1).to(torch.int16)


def table() -> IntegerProgram:
    return program(Table("x", "y", ENTRIES, "reversal"), {"x": X, "y": Y}, "x", rank=1)


def shown(p: IntegerProgram) -> bytes:
    return onnx_bytes(p, show_edges=True)


def test_all_entries_of_all_tables(tmp_path: object) -> None:
    assert require_exact_tables(table(), shown) == 256
    signed = edge(0.05, 0, (-7, 7))
    small = program(Table("x", "y", torch.arange(-7, 8).to(torch.int16), "itself"), {"x": signed, "y": signed}, "x", rank=1)
    assert require_exact_tables(small, shown) == 15
    pool = program(MaxPool("x", "y", (2,), (2,), (0,), (1,), False), {"x": X, "y": X}, "x", rank=3)
    assert require_exact_tables(pool, shown) == 0
    assert export_onnx(table(), f"{tmp_path}/t.onnx") > 0


def test_a_wrong_entry_is_named() -> None:
    def wrong(p: IntegerProgram) -> bytes:
        model = onnx.load_model_from_string(shown(p))
        stored = next(t for t in model.graph.initializer if len(t.dims) == 1 and t.dims[0] == 256)
        entries = onnx.numpy_helper.to_array(stored).copy()
        entries[17] ^= 1
        stored.CopyFrom(onnx.numpy_helper.from_array(entries, stored.name))
        data: bytes = model.SerializeToString()
        return data

    with pytest.raises(ExportError, match="'y': onnxruntime gives another entry of the table of reversal") as caught:
        require_exact_tables(table(), wrong)
    assert caught.value.got == "239 for code 17"
    assert caught.value.expected == 238


def test_a_pattern_that_becomes_another_arithmetic_is_refused() -> None:
    """A softmax between dequantize and quantize, which onnxruntime turns into QLinearSoftmax."""
    helper, proto = onnx.helper, onnx.TensorProto
    constants = [onnx.numpy_helper.from_array(np.float32(0.05), "s"), onnx.numpy_helper.from_array(np.uint8(3), "z")]
    nodes = [
        helper.make_node("DequantizeLinear", ["a", "s", "z"], ["b"]),
        helper.make_node("Softmax", ["b"], ["c"], name="attention", axis=-1),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["d"]),
    ]
    ends = [helper.make_tensor_value_info(n, proto.UINT8, ["N", 8]) for n in ("a", "d")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(ExportError, match="became QLinearSoftmax in onnxruntime, which computes something else"):
        require_integer_kernels(table(), model.SerializeToString())


def test_a_node_that_is_another_one_is_named() -> None:
    p = program(MaxPool("x", "y", (2,), (2,), (0,), (1,), False), {"x": X, "y": X}, "x", rank=3)
    p = IntegerProgram((ProgramInput("x.value", "float32", (None, 4, 8)),), p.nodes, p.edges, p.outputs, p.target)
    data = onnx_bytes(p)
    assert "MaxPool" in require_integer_kernels(p, data)
    model = onnx.load_model_from_string(data)
    node = next(n for n in model.graph.node if n.op_type == "MaxPool")
    node.op_type = "Identity"
    del node.attribute[:]
    with pytest.raises(ExportError, match="'y': onnxruntime runs no integer kernel for this MaxPool"):
        require_integer_kernels(p, model.SerializeToString())


def test_what_is_computed_twice_counts_as_the_kernel_that_computes_both() -> None:
    pools = [MaxPool("x", output, (3,), (1,), (1,), (1,), False) for output in ("a", "b")]
    inputs, quantizers = codes_in("x", rank=3)
    nodes = (*quantizers, *pools, Concat(("a", "b"), "y", 1), Dequantize("y", "y.value"))
    p = IntegerProgram(inputs, nodes, dict.fromkeys(("x", "a", "b", "y"), X), "y.value", "onnxruntime")
    data = onnx_bytes(p)
    assert require_integer_kernels(p, data)["MaxPool"] == 1, "onnxruntime computes it once"
    model = onnx.load_model_from_string(data)
    node = next(n for n in model.graph.node if list(n.output) == ["b"])
    node.op_type = "Identity"
    del node.attribute[:]
    with pytest.raises(ExportError, match="'b': onnxruntime runs no integer kernel for this MaxPool"):
        require_integer_kernels(p, model.SerializeToString())
