"""Softmax and attention in ONNX: the table as GatherElements, exact sums, and the row's sum as the scale of a quantizer.

QuantizeLinear divides each row by its own number, given at run time, in the pass that is made anyway. No Exp, whose last bit is
the CPU's, and nothing that an optimizer turns into another softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from truequant.integer.nodes import Attend, Softmax
from truequant.numerics import BYTE, FLOAT32_EXACT
from truequant.runtimes.onnx.integer_layers import reshape_to
from truequant.runtimes.onnx.kernels import kernels_of
from truequant.runtimes.onnx.writer import Writer, numpy_of

FLOAT, UINT8, INT32, DOUBLE = 1, 2, 6, 11
"""ONNX's numbers of dtypes."""
Steps = Callable[[Writer, Softmax | Attend, str], tuple[str, Any]]
"""`steps(writer, node, scores)`: a flat tensor of indices into a table, and the table."""
Divide = Callable[[Writer, Softmax | Attend, str, str], None]
"""`divide(writer, node, dividend, divisors)` writes the node's edge: each row of a float tensor over its own number."""


def step(writer: Writer, of: str, op: str, inputs: list[str], part: str, **attributes: Any) -> str:
    """A node of its own name."""
    output = writer.fresh(f"{of}.{part}")
    return writer.node(op, inputs, output, name=output, **attributes)


def softmax(writer: Writer, node: Softmax, divide: Divide | None = None, steps: Steps | None = None) -> None:
    """A softmax, as codes or as values."""
    name, coded = node.output, node.output in writer.program.edges
    raised, sums = _raised(writer, node, np.float32, steps)
    if not coded:
        writer.node("Div", [raised, sums], name, name=f"{name}.divided")
        return
    scale = writer.constant(f"{name}.scale", np.float32(writer.edge(name).scale))
    divisors = step(writer, name, "Mul", [sums, scale], "divisors")
    (divide or by_rows)(writer, node, raised, divisors)


def attend(
    writer: Writer,
    node: Attend,
    multiply: Callable[[Writer, Attend, str], str] | None = None,
    divide: Divide | None = None,
    steps: Steps | None = None,
) -> None:
    """Weights times values."""
    name = node.output
    raised, sums = _raised(writer, node, np.uint8, steps)
    values, output = (np.float32(writer.edge(n).scale) for n in (node.values, name))
    divisors = step(writer, name, "Mul", [sums, writer.constant(f"{name}.ratio", np.float32(output / values))], "divisors")
    acc = (multiply or _multiplied)(writer, node, raised)
    (divide or by_rows)(writer, node, acc, divisors)


def _multiplied(writer: Writer, node: Attend, raised: str) -> str:
    """`sum(e * (v - zv))`, int32, rounded to float32 once."""
    zero = writer.scale_and_zero(node.values)[1]
    none = writer.constant("no_zero_point", np.array(0, np.uint8))
    acc = writer.fresh(f"{node.output}.sum")
    writer.node(kernels_of(node).sums, [raised, node.values, none, zero], acc, name=node.output)
    return step(writer, node.output, "Cast", [acc], "sum_as_float", to=FLOAT)


def _raised(writer: Writer, node: Softmax | Attend, dtype: Any, steps: Steps | None) -> tuple[str, str]:
    """The exponentials in a dtype, and `float32(S)` of each row. Bytes hide by their bits, floats by a product."""
    name, scores = node.output, node.scores
    mask = _mask(writer, node)
    if mask:
        scores = step(writer, name, "BitwiseAnd", [scores, mask], "seen")
    flat, table = (_steps if steps is None else steps)(writer, node, scores)
    table = writer.constant(f"{name}.table", table.astype(dtype))
    looked = writer.fresh(f"{name}.looked_up")
    found = name if isinstance(node, Softmax) else looked
    writer.node(kernels_of(node).table, [table, flat], looked, name=found)
    raised = _shaped(writer, looked, f"{name}.exponentials", node.scores)
    if mask and dtype == np.uint8:
        raised = step(writer, name, "BitwiseAnd", [raised, mask], "kept")
    elif mask:
        bit = step(writer, name, "BitwiseAnd", [mask, writer.constant("lowest_bit", np.array(1, np.uint8))], "bit")
        raised = step(writer, name, "Mul", [raised, step(writer, name, "Cast", [bit], "shows", to=FLOAT)], "kept")
    return raised, _sums(writer, node, raised, dtype)


def _steps(writer: Writer, node: Softmax | Attend, scores: str) -> tuple[str, Any]:
    """`x - max` in one pass, as a dequantizer whose zero points are the largest codes of the rows; a table that counts down.

    GatherElements takes indices from the end: -1 is its last entry.
    """
    name, length = node.output, writer.shapes[node.scores][-1]
    rows = step(writer, name, "Reshape", [scores, _row_shape(writer, name, scores, node.scores, length)], "score_rows")
    largest = step(writer, name, "ReduceMax", [rows, writer.integers("second_axis", [1])], "largest", keepdims=0)
    one = writer.constant("one_scale", np.array([1], np.float32))
    units = step(writer, name, "Expand", [one, writer.measured(largest, f"{name}.score_count", 0, 1)], "units")
    below = step(writer, name, "DequantizeLinear", [rows, units, largest], "below", axis=0)
    flat = step(writer, name, "Reshape", [below, writer.integers("flat", [-1])], "flat_below")
    return step(writer, name, "Cast", [flat], "steps", to=INT32), np.roll(numpy_of(node.table)[::-1], 1)


def written_out_steps(writer: Writer, node: Softmax | Attend, scores: str) -> tuple[str, Any]:
    """`max - x` in integers, for runtimes that read no zero points of rows at run time."""
    name, axes = node.output, writer.integers("last_axis", [-1])
    largest = step(writer, name, "ReduceMax", [scores, axes], "largest", keepdims=1)
    both = [step(writer, name, "Cast", [part], as_, to=INT32) for part, as_ in ((largest, "top"), (scores, "numbers"))]
    found = step(writer, name, "Sub", both, "steps")
    return step(writer, name, "Reshape", [found, writer.integers("flat", [-1])], "flat_steps"), numpy_of(node.table)


def _row_shape(writer: Writer, name: str, tensor: str, like: str, length: int | None) -> str:
    """The shape of a tensor as rows."""
    if length is not None:
        return writer.integers(f"{name}.row", [-1, length])
    rank = len(writer.shapes[like])
    last = writer.measured(tensor, f"{name}.last", rank - 1, rank)
    return writer.joined(f"{name}.row", [writer.integers("any", [-1]), last])


def _sums(writer: Writer, node: Softmax | Attend, raised: str, dtype: Any) -> str:
    """`float32(max(sum(e), 1))`: in float32 where every partial sum is exact, else in float64."""
    name, length = node.output, writer.shapes[node.scores][-1]
    single = length is not None and length * node.largest <= FLOAT32_EXACT
    carrier, kind = (np.float32, FLOAT) if single else (np.float64, DOUBLE)
    if dtype != carrier:
        raised = step(writer, name, "Cast", [raised], "to_sum", to=kind)
    total = step(writer, name, "ReduceSum", [raised, writer.integers("last_axis", [-1])], "total", keepdims=1)
    total = step(writer, name, "Max", [total, writer.constant(f"{name}.least", np.array(1, carrier))], "sums")
    return total if single else step(writer, name, "Cast", [total], "rounded_sums", to=FLOAT)


def _mask(writer: Writer, node: Softmax | Attend) -> str:
    """All masks as one; "" where there is none."""
    masks = [*node.masks, *([_causal(writer, node)] if node.causal else [])]
    if node.shown is not None:
        masks.append(writer.constant(f"{node.output}.shown", numpy_of(node.shown)))
    found = masks[0] if masks else ""
    for mask in masks[1:]:
        found = step(writer, node.output, "BitwiseAnd", [found, mask], "mask")
    return found


def _causal(writer: Writer, node: Softmax | Attend) -> str:
    """The mask by which row i sees the places 0 … i, made of the sizes where these are dynamic."""
    name, (rows, columns) = node.output, writer.shapes[node.scores][-2:]
    if rows is not None and columns is not None:
        return writer.constant(f"{name}.causal", np.tril(np.full((rows, columns), BYTE, np.uint8)))
    rank = len(writer.shapes[node.scores])
    zero, one = (writer.constant(f"scalar_{n}", np.array(n, np.int64)) for n in (0, 1))
    counted = []
    for part, axis, shape in (("rows", rank - 2, [-1, 1]), ("columns", rank - 1, [1, -1])):
        size = writer.measured(node.scores, f"{name}.{part}", axis, axis + 1)
        size = step(writer, name, "Reshape", [size, writer.constant("no_axes", np.array([], np.int64))], f"{part}_size")
        line = step(writer, name, "Range", [zero, size, one], f"{part}_counted")
        counted.append(step(writer, name, "Reshape", [line, writer.integers(f"{part}_shape", shape)], f"{part}_number"))
    seen = step(writer, name, "GreaterOrEqual", counted, "not_later")
    number = step(writer, name, "Cast", [seen], "not_later_number", to=UINT8)
    return step(writer, name, "Mul", [number, writer.constant("byte", np.array(BYTE, np.uint8))], "causal")


def _shaped(writer: Writer, source: str, name: str, like: str) -> str:
    """A flat tensor in the shape of another."""
    shape, output = writer.shapes[like], writer.fresh(name)
    if sum(n is None for n in shape) > 1:
        whole = writer.measured(like, f"{name}.shape", 0, len(shape))
        return writer.node("Reshape", [source, whole], output, name=output)
    reshape_to(writer, source, output, shape)
    return output


def by_rows(writer: Writer, node: Softmax | Attend, dividend: str, divisors: str) -> None:
    """Rows divided by the quantizer that has a scale for each."""
    name, edge = node.output, writer.edge(node.output)
    shape = writer.shapes[name]
    features = _row_shape(writer, name, dividend, name, shape[-1])
    rows = step(writer, name, "Reshape", [dividend, features], "rows")
    scales = step(writer, name, "Reshape", [divisors, writer.integers("flat", [-1])], "row_scales")
    zero = writer.constant(f"{name}.row_zero", np.array([edge.zero_point], writer.dtype(edge)))
    count = writer.measured(scales, f"{name}.row_count", 0, 1)
    zeros = step(writer, name, "Expand", [zero, count], "row_zeros")
    codes = step(writer, name, "QuantizeLinear", [rows, scales, zeros], "row_codes", axis=0)
    raw = writer.unclipped(name, node.low, node.high)
    if sum(n is None for n in shape) > 1:
        whole = writer.measured(dividend, f"{name}.shape", 0, len(shape))
        writer.node("Reshape", [codes, whole], raw, name=f"{name}.reshape")
    else:
        reshape_to(writer, codes, raw, shape)
    writer.clipped(name, node.low, node.high)
