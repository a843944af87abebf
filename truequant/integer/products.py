"""MatMul: products of two activations, summed exactly.

Sums are carried by float32 where all of them stay below 2^24, else by float64. They must fit int32, as in kernels, but where
an operand has more than 8 bits: then float64 holds them up to 2^53.
"""

from __future__ import annotations

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.checks import label
from truequant.integer.nodes import Edge, MatMul
from truequant.integer.program import IntegerProgram
from truequant.integer.storage import scale_of, storage, zero_point_of
from truequant.numerics import FLOAT32_EXACT, FLOAT64_EXACT, INT32_MAX, multiplier, requantize


def matmul(node: MatMul, program: IntegerProgram, left: Tensor, right: Tensor) -> Tensor:
    """`(…, rows, sum) @ (…, sum, columns)` of codes. ConversionError where a sum could leave int32: kernels would wrap."""
    a, b, y = (program.edges[name] for name in (node.left, node.right, node.output))
    bound = left.shape[-1] * _reach(a) * _reach(b)
    limit = FLOAT64_EXACT if a.wide or b.wide else INT32_MAX
    if bound > limit:
        raise ConversionError(
            f"{label(node)}: an accumulator may leave {'int32' if limit == INT32_MAX else '2^53'}",
            got=f"sums of {left.shape[-1]} products up to {_reach(a) * _reach(b)}",
            expected=f"at most {limit}",
            fix="fewer bits for its inputs, or leave it in float",
        )
    carrier = torch.float32 if bound < FLOAT32_EXACT else torch.float64
    sums = (left.to(carrier) - a.zero_point) @ (right.to(carrier) - b.zero_point)
    factor = multiplier(scale_of(a, left), scale_of(b, left), scale_of(y, left))
    return requantize(sums, factor, zero_point_of(y, left), node.low, node.high).to(storage(y))


def _reach(edge: Edge) -> int:
    return max(edge.qmax - edge.zero_point, edge.zero_point - edge.qmin)
