"""Pointwise: one float32 operation for each number of values, which IEEE rounds in one way: no runtime has a choice here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.edge import Edge
from truequant.integer.nodes.base import Node, Shape, broadcast
from truequant.numerics import Pointwise as Function
from truequant.numerics import pointwise


@dataclass(frozen=True, slots=True)
class Pointwise(Node):
    """`function` of two values, broadcast: their sum, difference, product or quotient in order; or the negative of one."""

    function: Function
    inputs: tuple[str, ...]
    output: str
    reading = "values"
    writing = "values"
    rounds_once = True

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inputs

    def check(self, edges: Mapping[str, Edge]) -> None:
        if self.function not in get_args(Function):
            raise ConversionError(f"{self.label}: no such operation", got=repr(self.function)[:80])
        wanted = 1 if self.function == "neg" else 2
        if len(self.inputs) != wanted:
            raise ConversionError(f"{self.label}: {self.function} of {len(self.inputs)} values", expected=f"{wanted}")

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0] if len(shapes) == 1 else broadcast(self, *shapes)

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        return pointwise(self.function, *inputs)
