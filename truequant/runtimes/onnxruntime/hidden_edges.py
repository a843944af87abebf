"""Edges of a program that are in no tensor of a file, put into a copy of it: their codes from what the file itself computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from truequant.integer import IntegerProgram
from truequant.integer.nodes import Conv, Reshape
from truequant.runtimes.onnxruntime.pooled_sums import pooling_of
from truequant.runtimes.packages import onnx

_LONGEST = 8
"""How many nodes `pooled_sums` writes at most from a pooling to its codes."""
_INPUTS = {"Mul": 2, "QuantizeLinear": 3}


def show(graph: Any, program: IntegerProgram) -> None:
    """Append to an ONNX graph nodes that write the codes of its hidden edges, with the file's own constants.

    An edge that is hidden in no way known here stays so: who needs it must look.
    """
    writers = {output: node for node in graph.node for output in node.output}
    for node in program.nodes:
        if node.output in writers:
            continue
        if isinstance(node, Conv) and (pool := pooling_of(program, node)) is not None:
            _requantized(graph, node, _behind_pooling(writers, pool.output))
        elif isinstance(node, Reshape):
            flat = next((n for n in graph.node if n.op_type == "Reshape" and n.name == node.output), None)
            if flat is not None:
                _append(graph, "Reshape", [node.input, *flat.input[1:]], node.output)


def _behind_pooling(writers: dict[str, Any], name: str) -> dict[str, Any]:
    """The nodes that turn sums into the codes `name`, back to the pooling, by their ops. A file may hold anything there."""
    found: dict[str, Any] = {}
    for _ in range(_LONGEST):
        behind = writers.get(name)
        if behind is None or len(behind.input) < _INPUTS.get(behind.op_type, 1):
            break
        found.setdefault(behind.op_type, behind)
        if behind.op_type == "MaxPool":
            break
        name = behind.input[0]
    return found


def _requantized(graph: Any, layer: Conv, behind: dict[str, Any]) -> None:
    """The codes of all sums of a layer: those that the pooling drops too."""
    if not {"MaxPool", "Mul", "QuantizeLinear"} <= behind.keys():
        return
    name, channels, rank = layer.output, len(layer.weight), len(layer.stride)
    last = [0, *range(2, rank + 2), 1]
    moved = _append(graph, "Transpose", [behind["MaxPool"].input[0]], f"{name}.shown.last", perm=last)
    # The file repeats the factors along a row, or has one axis of them before those of space.
    factors = _append(
        graph, "Reshape", [behind["Mul"].input[1], _integers(graph, f"{name}.shown.flat", -1)], f"{name}.shown.all"
    )
    ends = [_integers(graph, f"{name}.shown.{end}", at) for end, at in (("begin", 0), ("end", channels))]
    factors = _append(graph, "Slice", [factors, *ends], f"{name}.shown.factors")
    scaled = _append(graph, "Mul", [moved, factors], f"{name}.shown.scaled")
    codes = _append(graph, "QuantizeLinear", [scaled, *behind["QuantizeLinear"].input[1:]], f"{name}.shown.codes")
    clip = behind.get("Clip")
    output = name if clip is None else f"{name}.shown.whole"
    _append(graph, "Transpose", [codes], output, perm=[0, rank + 1, *range(1, rank + 1)])
    if clip is not None:
        _append(graph, "Clip", [output, *clip.input[1:]], name)


def _append(graph: Any, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
    graph.node.append(onnx().helper.make_node(op, inputs, [output], name=f"{output}.shown", **attributes))
    return output


def _integers(graph: Any, name: str, value: int) -> str:
    graph.initializer.append(onnx().numpy_helper.from_array(np.array([value], np.int64), name))
    return name
