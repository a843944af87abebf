"""How much of a program is computed on integers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from truequant.integer.nodes import (
    Constant,
    Dequantize,
    FloatLinear,
    Island,
    Lookup,
    Moving,
    Node,
    Pad,
    Quantize,
    Shape,
)
from truequant.integer.program import IntegerProgram
from truequant.integer.shapes import program_layout
from truequant.planning.float_ops import MOVING_OPS

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class InFloat:
    """A node that computes floats: what it writes, torch's name of its op, and how many elements it writes."""

    node: str
    op: str
    elements: int


@dataclass(frozen=True, slots=True)
class Share:
    """Elements that the nodes of a program write, as passes over memory are what most of them cost.

    A layer counts once for each element of its result, however many products are summed. What only moves elements or gathers
    rows is not counted, nor are integers that are no codes (tokens, masks), the quantizers of the model's inputs and what
    makes floats of its outputs.

    integer: of nodes that compute codes, or sum them. in_float: all others, the one that writes most first; what quantizes
    and dequantizes around an island is among them, and so are operations that every runtime rounds alike (`Pointwise`).
    """

    integer: int
    in_float: tuple[InFloat, ...]

    @property
    def floats(self) -> int:
        return sum(node.elements for node in self.in_float)

    @property
    def on_integers(self) -> float:
        """The integer part of all elements, 0 … 1; 1 of a program that computes nothing."""
        total = self.integer + self.floats
        return self.integer / total if total else 1.0

    def __str__(self) -> str:
        total = self.integer + self.floats
        most = ", ".join(f"'{n.node}' ({n.op}, {n.elements / total:.1%})" for n in self.in_float[:_SHOWN])
        more = len(self.in_float) - _SHOWN
        rest = f" and {more} more" if more > 0 else ""
        heading = f"{self.on_integers:.1%} of {total:,} elements are computed on integers"
        return heading + (f"; most in float: {most}{rest}" if most else "")


def share(program: IntegerProgram, inputs: Mapping[str, Shape]) -> Share:
    """inputs: the shape of each. `ConversionError` for shapes that the program cannot compute."""
    shapes, dtypes = program_layout(program, inputs)
    returned, given = set(program.output_names()), {tensor.name for tensor in program.inputs}
    integer, in_float = 0, list[InFloat]()
    for node in _computing(program, given, returned):
        elements = math.prod(shapes[node.output])
        if isinstance(node, Island) and not dtypes[node.output].is_floating_point:
            continue
        if node.rounds_once or isinstance(node, (Island, FloatLinear, Quantize, Dequantize)):
            in_float.append(InFloat(node.output, node.op if isinstance(node, Island) else type(node).__name__, elements))
        else:
            integer += elements
    return Share(integer, tuple(sorted(in_float, key=lambda found: -found.elements)))


def _computing(program: IntegerProgram, given: set[str], returned: set[str]) -> Iterator[Node]:
    read = {name for node in program.nodes for name in node.reads}
    for node in program.nodes:
        moves = isinstance(node, (Moving, Pad, Constant, Lookup))
        moves |= isinstance(node, Island) and node.op in MOVING_OPS | {"embedding.default"}
        at_an_end = isinstance(node, Quantize) and node.input in given
        at_an_end |= isinstance(node, Dequantize) and node.output in returned and node.output not in read
        if not (moves or at_an_end):
            yield node
