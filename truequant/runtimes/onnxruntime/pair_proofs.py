"""Proofs of add and mul: all pairs of codes through the installed runtime, against the named rule."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from truequant import numerics
from truequant.integer import IntegerProgram, is_wide
from truequant.integer.nodes import Add, Edge, Mul, Sub
from truequant.runtimes.onnx.writer import IR_VERSION, MICROSOFT, Form, opsets, runs_here
from truequant.runtimes.packages import onnx, onnxruntime
from truequant.runtimes.promises import pairs_that_need_fma
from truequant.schemes import TARGETS, ArithmeticRule


def all_pairs(program: IntegerProgram, node: Add | Sub | Mul) -> Any:
    """Codes of the result for each pair `(a, b)` of codes, b fastest, int64 `(levels of a * levels of b,)`."""
    return _expected(*_setting(program, node))


def proven(program: IntegerProgram, node: Add | Sub | Mul, form: Form = "qdq") -> bool:
    """Whether the installed runtime's kernel computes the rule of this node for every pair of codes. None subtracts.

    Where CPUs of the target may lack FMA, the code must be the same without it. A target that has no runtime here is taken at
    its word, and so is every runtime for codes of 16 bits, whose pairs are too many to try: the file says dequantize, float32
    op, quantize.
    """
    target = TARGETS.get(program.target)
    if is_wide(node, program.edges) or not runs_here(program):
        return True
    if isinstance(node, Sub):
        return False
    setting = _setting(program, node)
    if isinstance(node, Add) and target is not None and target.without_fma and pairs_that_need_fma(*setting[1:6]):
        return False
    return _runs_exactly(*setting, form)


def _setting(program: IntegerProgram, node: Add | Sub | Mul) -> tuple[Any, ...]:
    kind = type(node).__name__
    left, right, output = (program.edges[n] for n in (node.left, node.right, node.output))
    return kind, left, right, output, node.low, node.high, "portable" if isinstance(node, Sub) else node.rule


Kind = Literal["Add", "Sub", "Mul"]


@lru_cache(maxsize=512)
def _expected(kind: Kind, left: Edge, right: Edge, output: Edge, low: int, high: int, rule: ArithmeticRule) -> Any:
    a, b = _grids(left, right)
    x, y, written = ((torch.tensor(e.scale), torch.tensor(float(e.zero_point))) for e in (left, right, output))
    left_codes, right_codes = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    if kind == "Sub":
        codes = numerics.sub(left_codes, right_codes, x, y, written, low, high)
    else:
        codes = (numerics.add if kind == "Add" else numerics.mul)(left_codes, right_codes, x, y, written, low, high, rule)
    return codes.numpy().astype(np.int64)


def _grids(left: Edge, right: Edge) -> tuple[Any, Any]:
    a, b = np.arange(left.qmin, left.qmax + 1), np.arange(right.qmin, right.qmax + 1)
    return np.repeat(a, len(b)), np.tile(b, len(a))


@lru_cache(maxsize=512)
def _runs_exactly(
    kind: Kind, left: Edge, right: Edge, output: Edge, low: int, high: int, rule: ArithmeticRule, form: Form = "qdq"
) -> bool:
    helper, tensors = onnx().helper, onnx().TensorProto
    a, b = _grids(left, right)
    nodes, constants, values = [], [], []
    for name, edge in (("a", left), ("b", right), ("y", output)):
        dtype = np.int8 if edge.signed else np.uint8
        constants += [
            onnx().numpy_helper.from_array(np.float32(edge.scale), f"{name}.scale"),
            onnx().numpy_helper.from_array(np.array(edge.zero_point, dtype), f"{name}.zero"),
        ]
        values.append(helper.make_tensor_value_info(name, tensors.INT8 if edge.signed else tensors.UINT8, ["N"]))
    if form == "qoperator":
        operands = ["a", "a.scale", "a.zero", "b", "b.scale", "b.zero", "y.scale", "y.zero"]
        nodes.append(helper.make_node(f"QLinear{kind}", operands, ["y"], domain=MICROSOFT))
    else:
        for name in ("a", "b"):
            nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}.scale", f"{name}.zero"], [f"{name}.value"]))
        nodes.append(helper.make_node(kind, ["a.value", "b.value"], ["y.value"]))
        nodes.append(helper.make_node("QuantizeLinear", ["y.value", "y.scale", "y.zero"], ["y"]))
    graph = helper.make_graph(nodes, "pairs", values[:2], values[2:], constants)
    model = helper.make_model(graph, opset_imports=opsets(nodes), ir_version=IR_VERSION)
    options = onnxruntime().SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime().InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {n: v.astype(np.int8 if e.signed else np.uint8) for n, v, e in (("a", a, left), ("b", b, right))}
    found = np.clip(session.run(None, feeds)[0].astype(np.int64), low, high)
    return bool((found == _expected(kind, left, right, output, low, high, rule)).all())
