"""Where LiteRT's codes might be others than the program's."""

from __future__ import annotations

from collections.abc import Iterator

from truequant.integer import IntegerProgram
from truequant.integer.nodes import Mul
from truequant.runtimes.sentences import names_of
from truequant.schemes import Target


def exceptions(program: IntegerProgram, target: Target) -> Iterator[str]:
    """Its products round otherwise on Arm."""
    if products := [node.output for node in program.nodes if isinstance(node, Mul)]:
        yield f"64-bit Arm: products are rounded in fixed point, so that ties may give other codes in {names_of(products)}"
