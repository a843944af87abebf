"""Where OpenVINO's codes might be others than the program's."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from truequant import numerics
from truequant.integer import IntegerProgram
from truequant.integer.nodes import AveragePool, Conv, Edge, Linear, MatMul, Normalize, Pointwise
from truequant.runtimes.onnx.shapes import dynamic_shapes
from truequant.runtimes.openvino.saturation import openvino_saturating
from truequant.runtimes.sentences import names_of, saturated
from truequant.schemes import Target


def exceptions(program: IntegerProgram, target: Target) -> Iterator[str]:
    """Its adds are tables, and it takes no codes of 16 bits."""
    saturating = openvino_saturating(program)
    if saturating and not target.saturating_pairs:
        yield saturated(saturating)
    if averages := [node.output for node in program.nodes if isinstance(node, AveragePool)]:
        yield f"any machine: averages over uneven windows are its own float32 sums, in {names_of(averages)}"
    if norms := [node.output for node in program.nodes if isinstance(node, Normalize)]:
        yield f"any machine: the steps of norms are joined, and those in float64 taken in float32, in {names_of(norms)}"
    if joined := [node.output for node in program.nodes if isinstance(node, Pointwise)]:
        yield f"any machine: a product and a sum behind it may be rounded once, in {names_of(joined)}"
    if large := sums_beyond_float32(program):
        yield f"any machine: sums at or above 2^24, which not every input has, are rounded twice in {names_of(large)}"


def computed_in_float(program: IntegerProgram) -> tuple[str, ...]:
    """What OpenVINO rounds in its own way, as it does a float island."""
    return tuple(node.output for node in program.nodes if isinstance(node, (Normalize, Pointwise)))


def sums_beyond_float32(program: IntegerProgram) -> list[str]:
    """What adds its bias to a sum that float32 may have rounded: layers by their codes, products by the length of a row."""
    edges, found = program.edges, []
    shapes = dynamic_shapes(program)[0] if any(isinstance(node, MatMul) for node in program.nodes) else {}
    for node in program.nodes:
        bound = 0.0
        if isinstance(node, (Conv, Linear)):
            x = edges[node.input]
            zero = torch.tensor(x.zero_point)
            bound = float(numerics.accumulator_bound(node.weight, node.bias, zero, x.qmin, x.qmax))
        elif isinstance(node, MatMul):
            length = shapes[node.left][-1]
            bound = math.inf if length is None else length * math.prod(_reach(edges[name]) for name in (node.left, node.right))
        if bound >= numerics.FLOAT32_EXACT:
            found.append(node.output)
    return found


def _reach(edge: Edge) -> int:
    return max(edge.zero_point - edge.qmin, edge.qmax - edge.zero_point)
