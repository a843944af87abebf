"""Grids of scores, and which attentions can be computed whole on codes."""

from __future__ import annotations

from collections.abc import Mapping

from truequant.planning.actions import OF_SCORES
from truequant.planning.attention import softmax_axis
from truequant.planning.graph import Graph, Node
from truequant.planning.ops import Role
from truequant.schemes import (
    FloatScale,
    MinMax,
    PerTensor,
    PowerOfTwoScale,
    QuantScheme,
    Target,
    is_dynamic,
    uint8,
)


def scores_scheme(activation: QuantScheme | None, target: Target) -> QuantScheme | None:
    """The scheme of scores, where no rule says another: 8 bits whatever other activations have, never clipped at the top."""
    if activation is None or is_dynamic(activation) or activation.dtype.signed or 8 not in target.activation_bits:
        return activation
    scale = PowerOfTwoScale() if activation.power_of_two else FloatScale()
    return QuantScheme(uint8, PerTensor(), observer=MinMax(), scale=scale)


def scores_grids(graph: Graph) -> frozenset[int]:
    """The grids that only softmaxes read."""
    ends = {graph.grid(v) for v in (*graph.outputs, *graph.input_values)}
    read = {
        graph.grid(n.reads[0])
        for n in graph.nodes
        if n.action == "weights" or (n.action == "softmax" and softmax_axis(n.call, graph.trace) == graph.rank(n.reads[0]) - 1)
    }
    others = {
        graph.grid(v)
        for n in graph.nodes
        if n.action != "identity"
        for v in (n.reads[1:] if n.action == "attend" else () if n.action in ("softmax", "weights") else n.reads)
        if n.fused_into is None
    }
    return frozenset(read - ends - others)


def broken_attentions(graph: Graph, schemes: Mapping[int, QuantScheme | None]) -> frozenset[int]:
    """The softmaxes and attentions, by index of their call, of which one part is not computed on unsigned codes of 8 bits."""
    found: set[int] = set()
    for node in graph.nodes:
        concerned = node.part is not None or node.call.op.role is Role.ATTENTION
        if concerned and not _whole(node, graph, schemes):
            found.add(node.index if node.part is None else node.part.softmax)
    return frozenset(found)


def _whole(node: Node, graph: Graph, schemes: Mapping[int, QuantScheme | None]) -> bool:
    if node.part is not None and node.action != node.part.kind:
        return False
    if node.action in OF_SCORES:
        return node.fused_into is not None
    if node.action == "weights":
        return schemes.get(graph.grid(node.writes[0])) is None and _fits(schemes.get(graph.grid(node.reads[0])))
    if node.action == "product":
        return True
    if node.action == "biased":
        return _fits(schemes.get(graph.grid(node.end)))
    if node.action not in ("softmax", "attend", "attention"):
        return False
    return all(_fits(schemes.get(graph.grid(value))) for value in (*node.reads, node.end))


def _fits(scheme: QuantScheme | None) -> bool:
    return (
        scheme is not None and not scheme.dtype.signed and scheme.dtype.bits <= 8 and isinstance(scheme.granularity, PerTensor)
    )


def table_bits(node: Node, graph: Graph) -> int | None:
    """Of a softmax whose result is an edge: the bits of its table. Where lengths are fixed, float32 holds a row's sum."""
    if node.action != "softmax":
        return None
    axis = softmax_axis(node.call, graph.trace)
    assert axis is not None
    length = graph.shape(node.reads[0])[axis]
    return 16 if graph.any_size else max(8, min(16, 24 - (max(1, length) - 1).bit_length()))
