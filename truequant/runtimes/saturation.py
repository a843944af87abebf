"""Which layers a CPU without VNNI may saturate: it sums pairs of products u8 x s8 in int16. Found from the codes alone."""

from __future__ import annotations

from truequant import numerics
from truequant.integer import IntegerProgram, is_wide
from truequant.integer.nodes import Conv, Linear, MatMul, Node
from truequant.schemes import TARGETS


def saturating_layers(program: IntegerProgram) -> list[str]:
    """The layers whose pair sums could leave int16, if their weights were shipped signed, in the form of onnxruntime's file
    that saturates most: in QDQ form some layers sum in float32 (`pooled_sums`).
    """
    return [node.output for node in program.nodes if isinstance(node, (Conv, Linear)) and may_saturate(program, node)]


def saturates(program: IntegerProgram, node: Conv | Linear) -> bool:
    """Whether a CPU of the target may saturate this layer, so that its weights do not ship as signed bytes."""
    return _pairs_saturate(program) and may_saturate(program, node)


def may_saturate(program: IntegerProgram, node: Conv | Linear) -> bool:
    """Whether pair sums of a layer's codes can leave int16. Codes of 16 bits are summed in float."""
    return not is_wide(node, program.edges) and layer_bound(program, node) > numerics.INT16_MAX


def layer_bound(program: IntegerProgram, node: Conv | Linear) -> int:
    """The largest sum that a kernel forms in int16 in a layer."""
    groups = node.groups if isinstance(node, Conv) else 1
    return numerics.pair_bound(node.weight, _largest_byte(program, node.input), groups)


def openvino_saturating(program: IntegerProgram) -> list[str]:
    """What OpenVINO's kernels could saturate if the form did nothing about it."""
    return [node.output for node in program.nodes if may_saturate_in_openvino(program, node)]


def saturates_in_openvino(program: IntegerProgram, node: Node) -> bool:
    """Whether a CPU of the target may saturate this node in OpenVINO."""
    return _pairs_saturate(program) and may_saturate_in_openvino(program, node)


def may_saturate_in_openvino(program: IntegerProgram, node: Node) -> bool:
    """Layers as elsewhere. Products of activations sum pairs too where the right operand fits in s8."""
    if isinstance(node, MatMul):
        right = program.edges[node.right]
        reach = max(right.zero_point - right.qmin, right.qmax - right.zero_point)
        pair = 2 * reach * _largest_byte(program, node.left)
        return not is_wide(node, program.edges) and pair > numerics.INT16_MAX
    return isinstance(node, (Conv, Linear)) and may_saturate(program, node)


def _pairs_saturate(program: IntegerProgram) -> bool:
    target = TARGETS.get(program.target)
    return target is not None and target.saturating_pairs


def _largest_byte(program: IntegerProgram, name: str) -> int:
    """Kernels turn signed codes into unsigned ones by adding 128."""
    edge = program.edges[name]
    return 255 if edge.signed else edge.qmax
