"""Which kernels onnxruntime really runs: its own optimized graph, node by node."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truequant.errors import ExportError
from truequant.integer import IntegerProgram, is_wide
from truequant.integer.nodes import Conv, Lookup, Table
from truequant.runtimes.onnx.kernels import INTEGER, kernels_of
from truequant.runtimes.onnxruntime.pooled_sums import pooling_of
from truequant.runtimes.onnxruntime.session import Level, session
from truequant.runtimes.packages import onnx

INEXACT = frozenset(
    ("MatMulNBits", "DynamicQuantizeMatMul", "DynamicQuantizeLinear", "QLinearSoftmax", "QLinearSigmoid", "QLinearLeakyRelu",
     "QLinearReduceMean")
)  # fmt: skip
"""Kernels with an arithmetic of their own, into which onnxruntime turns patterns that mean something else."""
_FIX = "form='qoperator', and please report it: this onnxruntime fuses differently than the versions truequant was proven with"
_LAYOUT = re.compile(r"_token_\d+$")
"""What onnxruntime appends to the name of a tensor that it keeps channels-last."""
_MOVES = frozenset(("Transpose", "Clip", "Reshape", "Cast", "Add", "Mul", "Identity", "Squeeze", "Unsqueeze"))


def optimized(data: bytes, level: Level = "all", folder: str | None = None) -> Any:
    """The graph that onnxruntime runs at an optimization level on this machine, without its constants.

    folder: where constants beside the model lie.
    """
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "optimized.onnx"
        session(data, optimized_path=str(path), level=level, folder=folder)
        return onnx().load(str(path), load_external_data=False).graph


def require_integer_kernels(
    program: IntegerProgram, data: bytes, level: Level = "all", folder: str | None = None
) -> dict[str, int]:
    """The census of the optimized graph, which is compared with the program node by node, by name.

    `ExportError` naming the first node that did not become an integer kernel, or that became one of `INEXACT`.
    """
    graph = optimized(data, level, folder)
    writers = {output: node for node in graph.node for output in node.output}
    forms: dict[str, list[str]] = {}
    for output in writers:
        forms.setdefault(_LAYOUT.sub("", output), []).append(output)
    named = {node.name: node for node in graph.node}
    twins: dict[str, list[str]] | None = None
    floats = {name for node in program.nodes for name in kernels_of(node).floats}
    for kernel in graph.node:
        if kernel.op_type in INEXACT - floats:
            raise ExportError(
                f"'{kernel.name or kernel.output[0]}' became {kernel.op_type} in onnxruntime, which computes something else",
                got=kernel.op_type,
                expected="the op that the file names",
                fix=_FIX,
            )
    pooled: set[str] = set()
    for node in program.nodes:
        kernels = kernels_of(node).exact
        rounds = node.output in program.edges or kernels_of(node).sums
        if not kernels or not rounds or (is_wide(node, program.edges) and not isinstance(node, (Table, Lookup))):
            continue
        if isinstance(node, Conv) and (pool := pooling_of(program, node)) is not None and _in_float(node, graph):
            pooled |= {node.output, pool.output}
        if node.output in pooled:
            continue

        def is_there(output: str, kernels: frozenset[str] = kernels) -> bool:
            # A kernel keeps its name where onnxruntime gives another one to the tensor that it writes.
            same_name = named.get(output)
            if same_name is not None and same_name.op_type in kernels:
                return True
            return any(_kernel_behind(name, writers, kernels) for name in forms.get(output, []))

        if is_there(node.output):
            continue
        names = forms.get(node.output, [])
        if not names and twins is None:
            twins = _twins(data)
        if names or twins is None or not any(map(is_there, twins.get(node.output, []))):
            there = writers[names[0]] if names else None
            raise ExportError(
                f"'{node.output}': onnxruntime runs no integer kernel for this {type(node).__name__}",
                got=there.op_type if there is not None else "nothing of that name",
                expected=" or ".join(sorted(kernels)),
                fix=_FIX if level == "all" else f"form='qoperator': optimization level {level!r} does not fuse",
            )
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def _twins(data: bytes) -> dict[str, list[str]]:
    """By tensor of a file, all tensors that the same ops compute from the same constants and inputs: onnxruntime computes one
    of them for all.
    """
    graph = onnx().load_model_from_string(data).graph
    first: dict[str, str] = {}
    classes: dict[object, list[str]] = {}

    def add(name: str, value: object) -> None:
        alike = classes.setdefault(value, [])
        alike.append(name)
        first[name] = alike[0]

    for constant in graph.initializer:
        name = constant.name
        constant.ClearField("name")
        add(name, constant.SerializeToString(deterministic=True))
    for node in graph.node:
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        inputs = tuple(first.get(name, name) for name in node.input)
        for position, name in enumerate(node.output):
            add(name, (node.domain, node.op_type, tuple(attributes), inputs, position))
    return {name: alike for alike in classes.values() for name in alike}


def _in_float(node: Conv, graph: Any) -> bool:
    """Whether a float convolution reads the centred codes that a layer before a pooling reads (see `pooled_sums`)."""
    centred = {
        kernel.output[0] for kernel in graph.node if kernel.op_type == "DequantizeLinear" and kernel.input[0] == node.input
    }  # fmt: skip
    return any(kernel.op_type in ("Conv", "FusedConv") and kernel.input[0] in centred for kernel in graph.node)


def _kernel_behind(name: str, writers: dict[str, Any], kernels: frozenset[str]) -> Any:
    """The integer kernel that writes a tensor, seen through data movement."""
    seen = 0
    while name in writers and seen < 12:
        node = writers[name]
        if node.op_type in kernels:
            return node
        if node.op_type not in _MOVES:
            return None
        name, seen = node.input[0], seen + 1
    return None


def census(data: bytes, level: Level = "all", folder: str | None = None) -> dict[str, int]:
    """How many kernels of each kind onnxruntime runs."""
    return dict(sorted(Counter(node.op_type for node in optimized(data, level, folder).node).items()))


def same_kernels(shipped: Mapping[str, int], shown: Mapping[str, int]) -> None:
    """ExportError unless a copy that shows its inner edges runs the same integer kernels, as many of each."""
    counts = [{k: n for k, n in c.items() if k in INTEGER} for c in (shipped, shown)]
    if counts[0] != counts[1]:
        raise ExportError(
            "showing the inner edges changed the kernels that onnxruntime runs, so that they prove nothing",
            got=counts[1],
            expected=counts[0],
        )
