"""Nodes that compute each code from codes at the same place: Quantize, Dequantize, Add, Sub, Mul,
Lookup, Table, Clamp."""

from __future__ import annotations

import torch
from torch import Tensor

from truequant import numerics
from truequant.errors import ConversionError
from truequant.integer.checks import label
from truequant.integer.nodes import Add, Clamp, Dequantize, Edge, Lookup, Mul, Quantize, Sub, Table
from truequant.integer.program import IntegerProgram
from truequant.integer.storage import elementwise, scale_of, storage, zero_point_of


def quantize(node: Quantize, program: IntegerProgram, x: Tensor) -> Tensor:
    """Codes of a value; NaN gives code 0."""
    edge = program.edges[node.output]
    scale, zero_point = scale_of(edge, x), zero_point_of(edge, x)
    return elementwise(lambda v: numerics.quantize(v, scale, zero_point, edge.qmin, edge.qmax), storage(edge), x)


def dequantize(node: Dequantize, program: IntegerProgram, x: Tensor) -> Tensor:
    """Values of codes, float32."""
    edge = program.edges[node.input]
    return numerics.dequantize(x, scale_of(edge, x), zero_point_of(edge, x))


def binary(node: Add | Sub | Mul, program: IntegerProgram, left: Tensor, right: Tensor) -> Tensor:
    """Add and Mul by their named rule, Sub; shapes broadcast."""
    target = program.edges[node.output]
    a_params, b_params, y_params = (_params(program.edges[name], left) for name in (node.left, node.right, node.output))

    def codes(a: Tensor, b: Tensor) -> Tensor:
        if isinstance(node, Sub):
            return numerics.sub(a.float(), b.float(), a_params, b_params, y_params, node.low, node.high)
        rule = numerics.add if isinstance(node, Add) else numerics.mul
        return rule(a.float(), b.float(), a_params, b_params, y_params, node.low, node.high, node.rule)

    return elementwise(codes, storage(target), left, right)


def lookup(node: Lookup, program: IntegerProgram, x: Tensor) -> Tensor:
    """Rows by number. ConversionError for a number that no row has."""
    rows = len(node.entries)
    if x.numel() and not (int(x.min()) >= 0 and int(x.max()) < rows):
        raise ConversionError(f"{label(node)}: no such row", got=f"{int(x.min())} … {int(x.max())}", expected=f"0 … {rows - 1}")
    return node.entries.to(x.device)[x.long()]


def table(node: Table, program: IntegerProgram, x: Tensor) -> Tensor:
    """`entries[q - qmin]`."""
    first, dtype = program.edges[node.input].qmin, storage(program.edges[node.output])
    entries = node.entries.to(x.device, dtype)
    return elementwise(lambda q: entries[q.to(torch.int32) - first], dtype, x)


def clamp(node: Clamp, program: IntegerProgram, x: Tensor) -> Tensor:
    """`clamp(q, low, high)`, in the storage of the output."""
    # In int32: a bound of the output need not exist in the input's storage.
    return elementwise(lambda q: q.to(torch.int32).clamp(node.low, node.high), storage(program.edges[node.output]), x)


def _params(edge: Edge, like: Tensor) -> tuple[Tensor, Tensor]:
    return scale_of(edge, like), zero_point_of(edge, like)
