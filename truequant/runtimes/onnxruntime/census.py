"""Which kernels onnxruntime really runs: its own optimized graph, node by node."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from truequant.errors import ExportError
from truequant.integer import IntegerProgram, is_wide
from truequant.integer.nodes import Conv, Lookup, Node, Table
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
    floats = {name for node in program.nodes for name in kernels_of(node).floats}
    for kernel in graph.node:
        if kernel.op_type in INEXACT - floats:
            raise ExportError(
                f"'{kernel.name or kernel.output[0]}' became {kernel.op_type} in onnxruntime, which computes something else",
                got=kernel.op_type,
                expected="the op that the file names",
                fix=_FIX,
            )
    shown = _Shown(graph, data)
    pooled: set[str] = set()
    for node in program.nodes:
        kernels = _required(program, node)
        if kernels and isinstance(node, Conv) and (pool := pooling_of(program, node)) is not None and _in_float(node, graph):
            pooled |= {node.output, pool.output}
        if not kernels or node.output in pooled or shown.computes(node.output, kernels):
            continue
        there = shown.writer(node.output)
        raise ExportError(
            f"'{node.output}': onnxruntime runs no integer kernel for this {type(node).__name__}",
            got=there.op_type if there is not None else "nothing of that name",
            expected=" or ".join(sorted(kernels)),
            fix=_FIX if level == "all" else f"form='qoperator': optimization level {level!r} does not fuse",
        )
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def _required(program: IntegerProgram, node: Node) -> frozenset[str]:
    """The kernels of which one must compute a node: none where it rounds nothing, or where runtimes have none so wide."""
    kernels = kernels_of(node)
    rounds = node.output in program.edges or kernels.sums
    wide = is_wide(node, program.edges) and not isinstance(node, (Table, Lookup))
    return kernels.exact if rounds and not wide else frozenset()


class _Shown:
    """Where the tensors of a file are in the graph that onnxruntime made of it."""

    def __init__(self, graph: Any, data: bytes) -> None:
        self.data = data
        self.writers = {output: node for node in graph.node for output in node.output}
        self.named = {node.name: node for node in graph.node}
        self.forms: dict[str, list[str]] = {}
        """Names by the name in the file, which onnxruntime appends to where it keeps a tensor channels-last."""
        for output in self.writers:
            self.forms.setdefault(_LAYOUT.sub("", output), []).append(output)

    @cached_property
    def twins(self) -> dict[str, list[str]]:
        return _twins(self.data)

    def writer(self, tensor: str) -> Any:
        names = self.forms.get(tensor, [])
        return self.writers[names[0]] if names else None

    def computes(self, tensor: str, kernels: frozenset[str]) -> bool:
        """Whether one of `kernels` writes a tensor of the file, or one that the same ops compute where it is not there."""
        if self._is_written(tensor, kernels):
            return True
        return tensor not in self.forms and any(self._is_written(twin, kernels) for twin in self.twins.get(tensor, []))

    def _is_written(self, tensor: str, kernels: frozenset[str]) -> bool:
        # A kernel keeps its name where onnxruntime gives another one to the tensor that it writes.
        same_name = self.named.get(tensor)
        if same_name is not None and same_name.op_type in kernels:
            return True
        return any(_kernel_behind(name, self.writers, kernels) for name in self.forms.get(tensor, []))


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
