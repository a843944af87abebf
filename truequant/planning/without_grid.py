"""Integer ops that become float ones, since what they read or write has no grid."""

from __future__ import annotations

from collections.abc import Mapping

from truequant.numerics import too_long
from truequant.planning.actions import BARE
from truequant.planning.float_linears import gridless
from truequant.planning.graph import Graph, Node
from truequant.planning.norm_parts import release_parts
from truequant.schemes import QuantScheme

Schemes = Mapping[int, QuantScheme | None]
"""By grid."""


def without_grid(graph: Graph, schemes: Schemes, tokens: Schemes) -> None:
    """An op whose input has no grid stays float, linear layers with their weights on a grid; so does one, `BARE` ones excepted,
    whose result has none, a product of signed codes, for which x86 runtimes have no exact kernel, and a norm of rows too long.

    tokens: how linear layers quantize what they read from a grid that is none.
    """
    while sum(_released(node, graph, schemes, tokens) for node in graph.nodes):
        pass  # what has become float took a grid from those that read it


def _released(node: Node, graph: Graph, schemes: Schemes, tokens: Schemes) -> bool:
    """Whether an integer node has become a float one, with what was fused into it on its own again."""
    if not node.integer:
        return False
    if node.action == "normalize" and schemes.get(graph.grid(node.end)) is None:
        _release_movements(node)
    reads = [s for v in node.reads if (s := schemes.get(graph.grid(v))) is not None]
    if len(reads) < len(node.reads):
        gridless(node, tokens.get(graph.grid(node.reads[0])))
    elif (why := _why_float(node, reads, schemes.get(graph.grid(node.end)), graph)) is not None:
        node.action, node.reason = "float", why
    else:
        return False
    for link in node.fused:
        link.fused_into = None
        link.action = "float" if link.action == "norm" else link.action
    node.fused, node.norm, node.affine = [], None, None
    release_parts(graph)
    return True


def _why_float(node: Node, reads: list[QuantScheme], result: QuantScheme | None, graph: Graph) -> str | None:
    if node.action == "product":
        grids = [s.dtype for s in (*reads, result) if s is not None]
        if any(d.signed for d in grids) and all(d.bits <= 8 for d in grids):
            return "no exact kernel multiplies signed codes"
    if node.norm_rule is not None:
        reach = reads[0].qmax - reads[0].qmin
        if too_long(node.norm_rule.count(graph.shape(node.reads[0])), reach):
            return "its rows are too long for sums of 64 bits"
    bare = node.action in BARE and not any(link.action in ("clamp", "movement") for link in node.fused)
    return None if result is not None or bare else "its result is left in float"


def _release_movements(node: Node) -> None:
    """A norm whose result leaves as values: what moves it moves values."""
    moved = next((i for i, link in enumerate(node.fused) if link.action == "movement"), len(node.fused))
    if any(link.action == "clamp" for link in node.fused[moved:]):
        return
    for link in node.fused[moved:]:
        link.fused_into = None
    node.fused = node.fused[:moved]
