"""Codes of more than 8 bits: no integer kernel of a runtime here reads or writes them.

A runtime dequantizes them, computes in float32 and quantizes. Of one operation an element (add, mul, sub) and of what moves
codes that is the program's own arithmetic, to the last code. Sums it orders as it likes, so that their codes may differ.
"""

from __future__ import annotations

from collections.abc import Mapping

from truequant.integer.nodes import Edge, Node
from truequant.integer.program import IntegerProgram


def is_wide(node: Node, edges: Mapping[str, Edge]) -> bool:
    """Whether a node reads or writes codes of more than 8 bits."""
    return any(name in edges and edges[name].wide for name in (*node.reads, node.output))


def float_sums(program: IntegerProgram) -> tuple[str, ...]:
    """What sums over wide codes write: the names whose codes a runtime may compute otherwise, by the order of its sums."""
    return tuple(node.output for node in program.nodes if node.sums and is_wide(node, program.edges))
