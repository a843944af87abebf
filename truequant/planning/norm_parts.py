"""Norms that are told by more than their own call: by the calls that lead to it, or by who else reads its input."""

from __future__ import annotations

from truequant.numerics import NormRule
from truequant.planning.graph import Graph, Node
from truequant.planning.norm_rules import BY_ROW, norm_rule
from truequant.planning.ops import Role


def take_parts(graph: Graph) -> None:
    """Give each norm the calls that nothing but it reads. What hands its activation on must be among them."""
    norms = [node for node in graph.nodes if node.written is not None]
    for norm in norms:
        written = norm.written
        assert written is not None
        parts = _read_within(graph, norm, {*written.steps, *written.passed})
        if not set(written.passed) <= parts:
            _release(norm, graph, "one of its steps is read elsewhere too")
            continue
        for value in sorted(parts):
            part = graph.writer[value]
            part.action, part.reason = ("norm" if value in written.passed else "within"), ""
            part.fused_into = norm
            norm.parts.append(part)
        norm.affine = written.gain
    if norms:
        graph.find_readers()


def norms_of_grids(graph: Graph) -> None:
    """A norm of a float value that an integer op reads too is a norm on codes: the value has a grid in any case."""
    for node in graph.nodes:
        if node.action != "float" or node.call.op.role is not Role.NORMALIZE or len(node.reads) != 1:
            continue
        rule = norm_rule(node.call, graph.shape(node.reads[0]))
        others = graph.readers.get(node.reads[0], [])
        if isinstance(rule, NormRule) and graph.is_float(node.reads[0]) and any(other.integer for other in others):
            node.action, node.reason, node.norm_rule = "normalize", BY_ROW, rule


def _read_within(graph: Graph, norm: Node, parts: set[int]) -> set[int]:
    """Those of the values that the norm and other such values alone read."""
    parts = {value for value in parts if value not in graph.outputs and value in graph.writer}
    while True:
        inside = {graph.writer[value].index for value in parts} | {norm.index}
        left = {v for v in parts if all(reader.index in inside for reader in graph.readers.get(v, []))}
        if left == parts:
            return parts
        parts = left


def release_parts(graph: Graph) -> None:
    """What led to norms that became float ops is float too."""
    for norm in graph.nodes:
        if norm.written is not None and norm.action != "normalize":
            _release(norm, graph, norm.reason)


def _release(norm: Node, graph: Graph, reason: str) -> None:
    norm.action, norm.reason, norm.written, norm.affine = "float", reason, None, None
    norm.reads = tuple(graph.resolve(v) for v in norm.call.inputs)
    for part in norm.parts:
        part.fused_into = None
        part.action, part.reason = "float", part.reason or f"a step of {norm.name}, which is left in float"
    norm.parts = []
