"""Which layers a CPU without VNNI may saturate: it sums pairs of products u8 x s8 in int16. Found from the codes alone."""

from __future__ import annotations

from truequant import numerics
from truequant.integer import IntegerProgram, is_wide
from truequant.integer.nodes import Conv, Linear
from truequant.runtimes.targets import pairs_saturate


def saturating_layers(program: IntegerProgram) -> list[str]:
    """The layers whose pair sums could leave int16, if their weights were shipped signed, in the form of onnxruntime's file
    that saturates most: in QDQ layout some layers sum in float32 (`onnxruntime.pooled_sums`).
    """
    return [node.output for node in program.nodes if isinstance(node, (Conv, Linear)) and may_saturate(program, node)]


def saturates(program: IntegerProgram, node: Conv | Linear) -> bool:
    """Whether a CPU of the target may saturate this layer, so that its weights do not ship as signed bytes."""
    return pairs_saturate(program) and may_saturate(program, node)


def may_saturate(program: IntegerProgram, node: Conv | Linear) -> bool:
    """Whether pair sums of a layer's codes can leave int16. Codes of 16 bits are summed in float."""
    return not is_wide(node, program.edges) and layer_bound(program, node) > numerics.INT16_MAX


def layer_bound(program: IntegerProgram, node: Conv | Linear) -> int:
    """The largest sum that a kernel forms in int16 in a layer."""
    groups = node.groups if isinstance(node, Conv) else 1
    return numerics.pair_bound(node.weight, largest_byte(program, node.input), groups)


def largest_byte(program: IntegerProgram, name: str) -> int:
    """The largest byte that kernels read for an edge. They turn signed codes into unsigned ones by adding 128."""
    edge = program.edges[name]
    return 255 if edge.signed else edge.qmax
