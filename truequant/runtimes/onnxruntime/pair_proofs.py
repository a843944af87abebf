"""Proofs of add and mul: all pairs of codes through the installed runtime, against the named rule."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from truequant.integer import IntegerProgram, is_wide
from truequant.integer.nodes import Add, Edge, Mul, Sub
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnx.kernels import MICROSOFT
from truequant.runtimes.onnx.lookups import Kind, Pairs, all_pairs, grids, pairs_of
from truequant.runtimes.onnx.writer import IR_VERSION, opsets
from truequant.runtimes.onnxruntime.cpus import pairs_that_differ
from truequant.runtimes.onnxruntime.session import onnxruntime
from truequant.runtimes.packages import onnx
from truequant.runtimes.targets import runs_here
from truequant.schemes import TARGETS, ArithmeticRule


def proven(program: IntegerProgram, node: Add | Sub | Mul, layout: Layout = "qdq") -> bool:
    """Whether the installed runtime's kernel computes the rule of this node for every pair of codes. None subtracts.

    Where the target has CPUs of another kind too, the code must be the same on those. A target that has no runtime here is
    taken at its word, and so is every runtime for codes of 16 bits, whose pairs are too many to try: the file says
    dequantize, float32 op, quantize.
    """
    target = TARGETS.get(program.target)
    if is_wide(node, program.edges) or not runs_here(program):
        return True
    if isinstance(node, Sub):
        return False
    pairs = pairs_of(program, node)
    if isinstance(node, Add) and target is not None and any(pairs_that_differ(cpu, *pairs[1:6]) for cpu in target.other_cpus):
        return False
    return _runs_exactly(*pairs, layout)


@lru_cache(maxsize=512)
def _runs_exactly(
    kind: Kind, left: Edge, right: Edge, output: Edge, low: int, high: int, rule: ArithmeticRule, layout: Layout = "qdq"
) -> bool:
    helper, tensors = onnx().helper, onnx().TensorProto
    a, b = grids(left, right)
    nodes, constants, values = [], [], []
    for name, edge in (("a", left), ("b", right), ("y", output)):
        dtype = np.int8 if edge.signed else np.uint8
        constants += [
            onnx().numpy_helper.from_array(np.float32(edge.scale), f"{name}.scale"),
            onnx().numpy_helper.from_array(np.array(edge.zero_point, dtype), f"{name}.zero"),
        ]
        values.append(helper.make_tensor_value_info(name, tensors.INT8 if edge.signed else tensors.UINT8, ["N"]))
    if layout == "qoperator":
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
    return bool((found == all_pairs(Pairs(kind, left, right, output, low, high, rule))).all())
