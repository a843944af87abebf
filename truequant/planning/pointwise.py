"""What lies in front of ops that compute each number alone (see `elementwise`): it hands them floats, and gets no grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from truequant.planning.actions import BARE, READS_VALUES
from truequant.planning.elementwise import ARITHMETIC, EACH_NUMBER
from truequant.planning.graph import Graph, Node
from truequant.planning.ops import Role
from truequant.planning.overrides import Overrides
from truequant.schemes import Inherit, QuantScheme

_LEADING = (Role.MOVEMENT, Role.CONCAT)
_ON_CODES = ("pool", "interpolate", "pad")
"""Movements that are written for codes."""


def take_leading(graph: Graph, overrides: Mapping[int, Overrides]) -> None:
    """What moves, negates or scales a value for such ops alone is one of them; so is what cuts a layer's result in parts, of
    which one goes to them.
    """
    for node in reversed(graph.nodes):
        if _may_lead(node, overrides) and _only_for_values(node, graph):
            _take(node, graph)
    for node in graph.nodes:
        if node.action == "layer" and _free(node, overrides):
            for cut in _cuts(node, graph, overrides):
                _take(cut, graph)


def _take(node: Node, graph: Graph) -> None:
    node.action, node.reason = "pointwise", EACH_NUMBER
    graph.constants -= set(node.reads)
    node.reads = tuple(graph.resolve(v) for v in node.call.inputs)


def _may_lead(node: Node, overrides: Mapping[int, Overrides]) -> bool:
    if overrides[node.index].rule is not None or node.call.kwargs.keys() & {"alpha", "out"}:
        return False
    if node.action in ("movement", "concat") and node.call.op.role in _LEADING:
        return not any(part in node.call.op.name for part in _ON_CODES)
    if node.action == "table":
        return node.call.op.name in ARITHMETIC and not node.call.kwargs
    return node.action in ("add", "sub") and len(node.call.inputs) == 1 and len(node.reads) == 2


def _only_for_values(node: Node, graph: Graph) -> bool:
    readers = [reader for value in node.writes for reader in graph.readers.get(value, [])]
    return bool(readers) and all(r.action in READS_VALUES for r in readers) and not graph.outputs & set(node.writes)


def _cuts(layer: Node, graph: Graph, overrides: Mapping[int, Overrides]) -> Sequence[Node]:
    """Movements behind a layer, where all that reads its result moves it, and such ops and others read what was moved."""
    found: list[Node] = []
    waiting, for_values, last = [*layer.writes], False, set[int]()
    while waiting:
        value = waiting.pop()
        if value in graph.outputs:
            return ()
        for reader in graph.readers.get(value, []):
            if reader.action in READS_VALUES:
                for_values = True
            elif reader.action == "movement" and _may_lead(reader, overrides):
                found.append(reader)
                waiting += reader.writes
            elif value in layer.writes:
                return ()
            else:
                last.add(value)
    several = any(len(last & set(node.writes)) > 1 for node in found)
    return found if for_values and not several else ()


def leave_bare(graph: Graph, overrides: Mapping[int, Overrides], schemes: dict[int, QuantScheme | None]) -> None:
    """Take the grids from results that such ops alone read, where no rule says one."""
    for node in graph.nodes:
        readers = graph.readers.get(node.end, []) if node.integer and node.action in BARE else []
        if not readers or node.end in graph.outputs or not all(r.action in READS_VALUES for r in readers):
            continue
        moved = any(link.action in ("clamp", "movement") for link in node.fused)
        if not moved and all(_free(n, overrides) for n in (node, *node.fused)) and _reads_by_rule(readers, overrides):
            schemes[graph.grid(node.end)] = None


def _free(node: Node, overrides: Mapping[int, Overrides]) -> bool:
    return isinstance(overrides[node.index].output, Inherit)


def _reads_by_rule(readers: Sequence[Node], overrides: Mapping[int, Overrides]) -> bool:
    return all(isinstance(overrides[reader.index].input, Inherit) for reader in readers)


def leave_floats(graph: Graph, schemes: Mapping[int, QuantScheme | None]) -> None:
    """Such ops that read nothing but what was left in float are left in float too."""
    for node in graph.nodes:
        if node.action == "pointwise" and not any(_is_exact(value, graph, schemes) for value in node.reads):
            node.action, node.reason = "float", "its input is left in float"


def _is_exact(value: int, graph: Graph, schemes: Mapping[int, QuantScheme | None]) -> bool:
    while True:
        writer = graph.writer.get(value)
        if schemes.get(graph.grid(value)) is not None or (
            writer is not None and (writer.integer or writer.action == "pointwise")
        ):
            return True
        if writer is None or writer.action not in ("movement", "norm") or len(writer.reads) != 1:
            return False
        value = writer.reads[0]
