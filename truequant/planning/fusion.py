"""What is computed together with what.

The result of an op that computes codes runs through a chain of single readers: a BatchNorm right behind a layer, then
clamps and data movement in any order. All of them commute with quantization, so the one quantizer of the chain sits at its
end, while in evaluation the op at its head already emits the codes of that grid.
"""

from __future__ import annotations

from math import inf

from truequant.planning.actions import MOVES
from truequant.planning.graph import Graph, Node
from truequant.planning.ops import LINEAR_OPS


def fuse(graph: Graph) -> None:
    """Fill in `fused`, `norm` and `bounds` of each node that heads a chain, and `fused_into` of the others."""
    for node in graph.nodes:
        if node.action == "layer":
            _fold(node, graph)
    for node in graph.nodes:
        if node.action == "norm" and node.fused_into is None:
            _stand_alone(node, graph)
    for node in graph.nodes:
        if node.integer:
            _follow(node, graph)
    for node in graph.nodes:
        if node.action in MOVES and node.fused_into is None:
            graph.join([*node.reads, *node.writes])
        elif node.integer:
            chain = [node, *node.fused]
            graph.join(value for link in chain for value in link.writes)


def _fold(layer: Node, graph: Graph) -> None:
    """The BatchNorm that alone reads what a layer writes is computed with it."""
    readers = graph.readers.get(layer.writes[0], [])
    if layer.writes[0] in graph.outputs or len(readers) != 1 or readers[0].action != "norm":
        return
    if _folds(layer, readers[0], graph):
        layer.norm, readers[0].fused_into = readers[0], layer
        layer.fused.append(readers[0])


def _stand_alone(norm: Node, graph: Graph) -> None:
    """A BatchNorm on codes is an integer layer of one weight a channel."""
    statistics = getattr(graph.modules[norm.call.owner], "running_mean", None)
    before = graph.writer.get(norm.reads[0])
    on_codes = norm.reads[0] in graph.on_codes and before is not None and before.action != "float"
    if norm.leaf and statistics is not None and on_codes and graph.rank(norm.reads[0]) <= 5:
        norm.action, norm.reason = "affine", "integer factor and bias a channel"
    else:
        norm.action = "float"


def _follow(node: Node, graph: Graph) -> None:
    value = node.end
    while value not in graph.outputs:
        readers = graph.readers.get(value, [])
        if len(readers) != 1:
            return
        (reader,) = readers
        if reader.action == "clamp":
            node.bounds = _intersect(node.bounds, reader.bounds)
        elif not (reader.action == "movement" and len(reader.writes) == 1):
            return
        node.fused.append(reader)
        reader.fused_into = node
        value = reader.writes[0]


def _folds(layer: Node, norm: Node, graph: Graph) -> bool:
    """A BatchNorm normalizes axis 1: of a linear layer that is the features only where the input has two axes.

    Both must be modules of torch's: their parameters are found there.
    """
    rank = graph.rank(layer.writes[0])
    right_axis = rank == 2 if layer.call.op.name in LINEAR_OPS else rank > 2
    has_statistics = getattr(graph.modules[norm.call.owner], "running_mean", None) is not None
    return right_axis and layer.leaf and norm.leaf and has_statistics


def _intersect(a: tuple[float | None, float | None], b: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    """The clamp that `b` after `a` is: each end of `a` clamped by `b`."""

    low, high = (-inf if b[0] is None else b[0]), (inf if b[1] is None else b[1])

    def through(end: float | None, open_end: float | None) -> float | None:
        return open_end if end is None else min(max(end, low), high)

    return through(a[0], b[0]), through(a[1], b[1])
