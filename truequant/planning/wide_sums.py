"""Sums with constants that have 16 bits: those of embeddings, which a norm reads."""

from __future__ import annotations

from truequant.planning.graph import Graph


def wide_sums(graph: Graph) -> frozenset[int]:
    """Grids of sums with constants, and of these constants, where only norms and further sums read them: embeddings.

    A sum that is rounded to 8 bits after each term loses what one float sum keeps, and the sums of an embedding are few.
    """
    found: set[int] = set()
    ends = {graph.grid(v) for v in (*graph.outputs, *graph.input_values)}
    for node in graph.nodes:
        sums = node.action in ("add", "sub") and not node.fused
        constants = {graph.grid(v) for v in node.reads if v in graph.constants}
        if not sums or not (constants or any(graph.grid(v) in found for v in node.reads)):
            continue
        grid = graph.grid(node.end)
        readers = [n for n in graph.nodes if n.fused_into is None and any(graph.grid(v) == grid for v in n.reads)]
        if grid not in ends and readers and all(n.action in ("normalize", "add", "sub") for n in readers):
            found |= {grid, *constants}
    return frozenset(found)
