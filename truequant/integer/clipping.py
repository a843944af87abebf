"""How much of its inputs a program clips."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from truequant.integer.nodes import Quantize
from truequant.integer.program import IntegerProgram
from truequant.integer.storage import scale_of, zero_point_of
from truequant.numerics import InputClipping


def count_clipped(program: IntegerProgram, feeds: Mapping[str, Tensor], counts: InputClipping) -> None:
    """Count what the quantization of the program's inputs clips of these."""
    for node in program.nodes:
        if isinstance(node, Quantize) and node.input in feeds:
            edge, x = program.edges[node.output], feeds[node.input]
            counts.add(node.input, x, scale_of(edge, x), zero_point_of(edge, x), (edge.qmin, edge.qmax))
