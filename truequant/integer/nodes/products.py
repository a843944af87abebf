"""MatMul: products of two activations, summed exactly.

Sums are carried by float32 where all of them stay below 2^24, else by float64. They must fit int32, as in kernels, but where
an operand has more than 8 bits: then float64 holds them up to 2^53.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.edge import Edge
from truequant.integer.nodes.base import Binary, Shape, broadcast
from truequant.integer.nodes.checks import all_normal, check_clamp, check_ratio, float32
from truequant.integer.storage import scale_of, storage, zero_point_of
from truequant.kernels import products_of_codes
from truequant.numerics import FLOAT32_EXACT, FLOAT64_EXACT, INT32_MAX, multiplier, product_values, requantize


@dataclass(frozen=True, slots=True)
class MatMul(Binary):
    """`acc = sum((aq - za) * (bq - zb))` over the last axis of `left` and the last but one of `right`, axes before them
    broadcast, then requantized by `M = float32(float32(sa * sb) / sy)`. Where its output is a value:
    `float32(acc) * float32(float32(sa * sb) * factor)`.
    """

    low: int
    high: int
    factor: float = 1.0
    writing = "either"
    sums = True

    def check(self, edges: Mapping[str, Edge]) -> None:
        if self.output not in edges:
            if not all_normal(scale := self.value_scale(edges)):
                raise ConversionError(f"{self.label}: scales too far apart for float32", got=float(scale))
            return
        check_clamp(self, self.low, self.high, edges[self.output])
        check_ratio(self, edges, of_product=True)

    def value_scale(self, edges: Mapping[str, Edge]) -> Tensor:
        """`float32(float32(sa * sb) * factor)`, by which its sums become values; 0-d, float32."""
        return float32(edges[self.left].scale) * float32(edges[self.right].scale) * float32(self.factor)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        left, right = shapes
        if min(len(left), len(right)) < 2 or left[-1] != right[-2]:
            raise ConversionError(
                f"{self.label} cannot multiply its inputs", got=f"shapes {left} and {right}",
                expected="(…, a, b) and (…, b, c)",
            )  # fmt: skip
        return (*broadcast(self, left[:-2], right[:-2]), left[-2], right[-1])

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """`(…, rows, sum) @ (…, sum, columns)` of codes. ConversionError where a sum could leave int32: kernels would wrap."""
        left, right = inputs
        a, b, y = edges[self.left], edges[self.right], edges.get(self.output)
        largest = a.reach * b.reach
        bound = left.shape[-1] * largest
        limit = FLOAT64_EXACT if a.wide or b.wide else INT32_MAX
        if bound > limit:
            raise ConversionError(
                f"{self.label}: an accumulator may leave {'int32' if limit == INT32_MAX else '2^53'}",
                got=f"sums of {left.shape[-1]} products up to {largest}",
                expected=f"at most {limit}",
                fix="fewer bits for its inputs, or leave it in float",
            )
        sums = None if a.wide or b.wide else products_of_codes(left.float() - a.zero_point, right.float() - b.zero_point)
        if sums is None:
            carrier = torch.float32 if bound < FLOAT32_EXACT else torch.float64
            sums = (left.to(carrier) - a.zero_point) @ (right.to(carrier) - b.zero_point)
        if y is None:
            return product_values(sums, scale_of(a, left), scale_of(b, left), self.factor)
        factor = multiplier(scale_of(a, left), scale_of(b, left), scale_of(y, left))
        return requantize(sums, factor, zero_point_of(y, left), self.low, self.high).to(storage(y))
