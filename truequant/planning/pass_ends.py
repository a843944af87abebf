"""Which ops run in one training pass with the quantizer behind them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from truequant.planning.capture import Call, Trace
from truequant.planning.graph import Graph, Node
from truequant.schemes import Fusions

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Modules whose one call is `F.batch_norm`: `nn.SyncBatchNorm` computes the statistics of all ranks itself."""


def pass_ends(
    graph: Graph, trained: Trace, calls: Mapping[int, Call | None], at_node: Mapping[int, str], fusions: Fusions
) -> dict[int, str]:
    """For each node, by index, whose training pass ends in a quantizer: the name of the site where that quantizer sits.

    It sits at the node itself, or at a clamp that alone reads, in training too, what the node writes.
    """
    readers: dict[int, int] = {}
    for call in trained.calls:
        for value in call.inputs:
            readers[value] = readers.get(value, 0) + 1

    found = {}
    for node in graph.nodes:
        if not _may(node, graph, fusions) or _writes_back(node, graph) or calls.get(node.index) is None:
            continue
        if node.index in at_node:
            found[node.index] = node.name
            continue
        behind = _behind(node)
        if (
            node.action == "clamp"
            or behind is None
            or behind.action != "clamp"
            or behind.index not in at_node
            or _writes_back(behind, graph)
        ):
            continue
        first, second = calls.get(node.index), calls.get(behind.index)
        if first is None or second is None or len(first.outputs) != 1:
            continue
        value = first.outputs[0]
        if value in second.inputs and readers.get(value) == 1 and value not in trained.outputs:
            found[node.index] = behind.name
    return found


def _may(node: Node, graph: Graph, fusions: Fusions) -> bool:
    match node.action:
        case "clamp":
            return fusions.clamp
        case "add":
            return fusions.add and not node.leaf
        case "norm":
            own = not node.leaf or isinstance(graph.modules[node.call.owner], NORMS)
            return fusions.norm and own and node.fused_into is not None and node.fused_into.norm is node
        case _:
            return False


def _behind(node: Node) -> Node | None:
    """What is computed right behind `node` in its chain."""
    chain = node.fused_into.fused if node.fused_into is not None else [node, *node.fused]
    position = next((i for i, link in enumerate(chain) if link is node), len(chain))
    return chain[position + 1] if position + 1 < len(chain) else None


def _writes_back(node: Node, graph: Graph) -> bool:
    return any(value in graph.trace.stale for value in node.writes)
