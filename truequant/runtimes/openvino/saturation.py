"""What OpenVINO's int8 kernels may saturate on a CPU without VNNI: products of activations too."""

from __future__ import annotations

from truequant import numerics
from truequant.integer import IntegerProgram, is_wide
from truequant.integer.nodes import Conv, Linear, MatMul, Node
from truequant.runtimes.saturation import largest_byte, may_saturate
from truequant.runtimes.targets import pairs_saturate


def openvino_saturating(program: IntegerProgram) -> list[str]:
    """What OpenVINO's kernels could saturate if the form did nothing about it."""
    return [node.output for node in program.nodes if may_saturate_in_openvino(program, node)]


def saturates_in_openvino(program: IntegerProgram, node: Node) -> bool:
    """Whether a CPU of the target may saturate this node in OpenVINO."""
    return pairs_saturate(program) and may_saturate_in_openvino(program, node)


def may_saturate_in_openvino(program: IntegerProgram, node: Node) -> bool:
    """Layers as elsewhere. Products of activations sum pairs too where the right operand fits in s8."""
    if isinstance(node, MatMul):
        right = program.edges[node.right]
        reach = max(right.zero_point - right.qmin, right.qmax - right.zero_point)
        pair = 2 * reach * largest_byte(program, node.left)
        return not is_wide(node, program.edges) and pair > numerics.INT16_MAX
    return isinstance(node, (Conv, Linear)) and may_saturate(program, node)
