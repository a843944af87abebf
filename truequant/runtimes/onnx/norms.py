"""Norms of codes in ONNX: each step of a rule as one op, exact or one float32 rounding, that no optimizer turns into another.

Nothing here raises to a power or takes a mean: of these, runtimes make a fused float norm. Sums of codes are float32 where
every partial sum stays below 2^24; else they are taken of parts of a row, and the sums of the parts in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from truequant.integer.nodes import Normalize
from truequant.numerics import FLOAT32_EXACT, FLOAT64_EXACT, NormRule, norm_constants
from truequant.numerics.norms import FLOOR, over_rows
from truequant.runtimes.onnx.integer_layers import reshape_to
from truequant.runtimes.onnx.kernels import kernels_of
from truequant.runtimes.onnx.writer import Writer, numpy_of

_FLOAT, _INT64, _DOUBLE = 1, 7, 11
_SHORTEST = 8
"""Elements of a part of a row: of shorter parts the whole tensor is summed in float64."""
Finish = Callable[[Writer, str, str, Normalize], None]
"""`finish(writer, value, output, node)` writes the tensor `output`: codes of a value in steps of the node's grid."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """How a norm sees its input: the sizes of the tensor, the axes that it sums over, and the elements of a row."""

    sizes: tuple[int | None, ...]
    axes: tuple[int, ...]
    count: int | None
    moved: bool
    """Whether the tensor is not the edge itself, but that in other sizes."""

    @property
    def flat(self) -> bool:
        """Whether the tensor is `(rows, elements of a row)`, of a known length."""
        return self.axes == (-1,) and self.count is not None and len(self.sizes) == 2


def _rows_of(rule: NormRule, shape: tuple[int | None, ...]) -> _Rows:
    if rule.kind == "group":
        known = [n for n in shape[2:] if n is not None]
        assert shape[1] is not None
        count = shape[1] // rule.groups * math.prod(known) if len(known) == len(shape) - 2 else None
        return _Rows(shape if len(shape) > 2 else (None, shape[1], 1), (), count, len(shape) == 2)
    inner = shape[min(rule.axes) :]
    known = [n for axis in rule.axes if (n := shape[axis]) is not None]
    count = math.prod(known) if len(known) == len(rule.axes) else None
    if count is not None and len(rule.axes) == len(inner):
        return _Rows((None, count), (-1,), count, shape[1:] != (count,))
    return _Rows(shape, rule.axes, count, False)


def write_norm(writer: Writer, node: Normalize, finish: Finish, *, scale_a_row: bool) -> None:
    """scale_a_row: the runtime's QuantizeLinear divides each row by a number of its own, which saves a pass."""
    shape, rule = writer.shapes[node.input], node.rule
    rows, step = _rows_of(rule, shape), _Step(writer, node)
    source = node.input if not rows.moved else step("Reshape", [node.input, _target(writer, node, rows, "rows")], "rows")
    unit = writer.constant("unit", np.float32(1))
    centred = step("DequantizeLinear", [source, unit, writer.scale_and_zero(node.input)[1]], "centred")
    known = _Constants.of(step, rows, shape)
    coded = node.output in writer.program.edges
    if rule.kind in ("rms", "l2"):
        divisor = _divisor(step, centred, rows, known)
        if node.gain is not None:
            centred = step("Mul", [centred, step.constant("gain", _placed(known.gain, rows))], "scaled")
        if coded and scale_a_row and rows.flat:
            _divided_in_quantizing(step, centred, divisor, rows, shape)
            return
        value = step("Div", [centred, divisor], "normalized")
    else:
        inverse, mean = _deviation(step, centred, rows, known)
        if rule.kind == "group":
            value = _by_channel(step, centred, inverse, mean, known, len(rows.sizes))
        else:
            value = step("Mul", [step("Sub", [centred, mean], "around_zero"), inverse], "normalized")
            value = step("Mul", [value, step.constant("gain", _placed(known.gain, rows))], "scaled")
            if known.bias is not None:
                value = step("Add", [value, step.constant("bias", _placed(known.bias, rows))], "shifted")
    if not coded:
        _restored(step, value, node.output, rows, shape)
        return
    raw = writer.unclipped(node.output, node.low, node.high)
    made = writer.fresh(f"{node.output}.codes_of_rows") if rows.moved else raw
    finish(writer, value, made, node)
    if rows.moved:
        _restored(step, made, raw, rows, shape)
    writer.clipped(node.output, node.low, node.high)


class _Step:
    """`step(op, inputs, part)` writes one op of a norm, whose tensor is named after the edge."""

    def __init__(self, writer: Writer, node: Normalize) -> None:
        self.writer, self.node = writer, node

    def __call__(self, op: str, inputs: list[str], part: str, **attributes: Any) -> str:
        output = self.writer.fresh(f"{self.node.output}.{part}")
        return self.writer.node(op, inputs, output, name=output, **attributes)

    def constant(self, part: str, value: Any) -> str:
        return self.writer.constant(f"{self.node.output}.{part}", value)

    def cast(self, value: str, part: str, to: int) -> str:
        return self("Cast", [value], f"{part}.{ {_FLOAT: 'single', _INT64: 'whole', _DOUBLE: 'double'}[to] }", to=to)

    def axes(self, axes: tuple[int, ...]) -> str:
        return self.writer.integers(f"{self.node.output}.axes", list(axes))


@dataclass(frozen=True, slots=True)
class _Constants:
    """Names of the tensors that the steps of rows read; gain and bias as numbers. whole: the count in float64 or int64."""

    count: str
    whole: str
    carrier: int
    term: str
    numerator: str
    unit: str
    outside: str | None
    gain: Any
    """0-d where there is none of layer and group norms."""
    bias: Any
    width: int
    """Channels of a group."""

    @staticmethod
    def of(step: _Step, rows: _Rows, shape: tuple[int | None, ...]) -> _Constants:
        """Computed where the count is known, else by ops of the file. Without correction, the numerator is the count."""
        node, edges, rule = step.node, step.writer.program.edges, step.node.rule
        target = edges.get(node.output)
        scales = (
            torch.tensor(s, dtype=torch.float32) for s in (edges[node.input].scale, 1.0 if target is None else target.scale)
        )
        found = norm_constants(rule, rows.count or 1 + rule.correction, node.gain, node.bias, *scales)
        numbers = {
            name: step.constant(name, numpy_of(value)) if value is not None else None
            for name, value in (
                ("count", found.count), ("term", found.term), ("numerator", found.numerator), ("unit", found.unit),
                ("outside", found.outside),
            )
        }  # fmt: skip
        reach = edges[node.input].reach
        in_int64 = rows.count is None or (rows.count * reach) ** 2 >= FLOAT64_EXACT
        carrier = _INT64 if in_int64 else _DOUBLE
        gain, bias = (None if t is None else numpy_of(t) for t in (found.gain, found.bias))
        width = (shape[1] or 0) // rule.groups if rule.groups else 0
        rest = {"carrier": carrier, "gain": gain, "bias": bias, "width": width}
        if rows.count is not None:
            whole = step.constant("whole", np.array(rows.count, np.int64 if in_int64 else np.float64))
            return _Constants(whole=whole, **rest, **numbers)  # type: ignore[arg-type]
        whole = _counted(step, rule, shape)
        double = step.cast(whole, "count", _DOUBLE)
        numbers["count"] = numbers["numerator"] = step.cast(double, "count", _FLOAT)
        if rule.kind != "l2":
            between = step("Mul", [double, double], "square") if rule.kind != "rms" else double
            term = step(
                "Mul", [between, step.constant("variance", np.float64(_variance(rule, edges[node.input].scale)))], "term"
            )
            numbers["term"] = step("Max", [term, step.constant("least", np.float64(FLOOR))], "at_least")
        if rule.kind == "rms":
            scale = step.constant("scale", np.float64(1.0 if target is None else target.scale))
            numbers["unit"] = step.cast(
                step("Div", [scale, step("Sqrt", [double], "root_of_count")], "of_root"), "unit", _FLOAT
            )
        return _Constants(whole=whole, **rest, **numbers)  # type: ignore[arg-type]


def _variance(rule: NormRule, scale: float) -> float:
    """`float32(eps / sx^2)`."""
    return float(np.float32(rule.eps / (scale * scale)))


def _counted(step: _Step, rule: NormRule, shape: tuple[int | None, ...]) -> str:
    """The elements of a row, int64, of a tensor whose sizes are dynamic."""
    measured = step.writer.measured(step.node.input, f"{step.node.output}.sizes", 0, len(shape))
    axes = range(2 if rule.kind == "group" else 0, len(shape)) if rule.kind == "group" else [a % len(shape) for a in rule.axes]
    sizes = step("Gather", [measured, step.writer.integers(f"{step.node.output}.places", list(axes))], "row_sizes")
    count = step("ReduceProd", [sizes], "product", keepdims=0)
    if rule.kind != "group":
        return count
    channels = shape[1]
    assert channels is not None
    return step("Mul", [count, step.constant("channels", np.array(channels // rule.groups, np.int64))], "counted")


def _total(step: _Step, centred: str, rows: _Rows, power: int) -> tuple[str, int]:
    """The sum of codes or of their squares over each row, exact, and its dtype; the axes stay with length 1."""
    reach, part = step.writer.edge(step.node.input).reach, ("sum", "squares")[power - 1]
    bound, count = reach**power, rows.count

    def terms(of: str) -> str:
        return of if power == 1 else step("Mul", [of, of], "squared")

    if step.node.kind == "group":
        return _total_of_groups(step, centred, terms, rows.sizes, bound, part), _DOUBLE
    if count is not None and count * bound < FLOAT32_EXACT:
        return step("ReduceSum", [terms(centred), step.axes(rows.axes)], part, keepdims=1), _FLOAT
    if rows.flat and count is not None and bound < FLOAT32_EXACT:
        parts = next((k for k in range(2, count) if count % k == 0 and count // k * bound < FLOAT32_EXACT), count)
        if count // parts >= _SHORTEST:
            target = step.writer.integers(f"{step.node.output}.parts", [-1, parts, count // parts])
            cut = step("Reshape", [terms(centred), target], f"{part}.parts")
            first = step("ReduceSum", [cut, step.axes((-1,))], f"{part}.first", keepdims=0)
            return step("ReduceSum", [step.cast(first, f"{part}.first", _DOUBLE), step.axes((-1,))], part, keepdims=1), _DOUBLE
    wide = step.cast(centred, "centred", _DOUBLE)
    return step("ReduceSum", [terms(wide), step.axes(rows.axes)], part, keepdims=1), _DOUBLE


def _total_of_groups(
    step: _Step, centred: str, terms: Callable[[str], str], sizes: tuple[int | None, ...], bound: int, part: str
) -> str:  # fmt: skip
    """Over as much of the space of a channel as float32 sums exactly, then over channels and the rest, `(N, groups, 1)`."""
    axes: tuple[int, ...] = ()
    for place, size in enumerate(reversed(sizes[2:]), start=1):
        bound *= size or FLOAT32_EXACT
        if bound >= FLOAT32_EXACT:
            break
        axes = (-place, *axes)
    if axes:
        inner = step("ReduceSum", [terms(centred), step.axes(axes)], f"{part}.first", keepdims=0)
        inner = step.cast(inner, f"{part}.first", _DOUBLE)
    else:
        inner = terms(step.cast(centred, "centred", _DOUBLE))
    left = sizes[2 : len(sizes) - len(axes)]
    grouped = [-1, step.node.groups, (sizes[1] or 0) // step.node.groups * math.prod(n or 1 for n in left)]
    if None in left:
        grouped = [0, step.node.groups, -1]
    target = step.writer.integers(f"{step.node.output}.{part}.groups", grouped)
    return step("ReduceSum", [step("Reshape", [inner, target], f"{part}.groups"), step.axes((-1,))], part, keepdims=1)


def _as(step: _Step, value: tuple[str, int], part: str, to: int) -> str:
    return value[0] if value[1] == to else step.cast(value[0], part, to)


def _divisor(step: _Step, centred: str, rows: _Rows, known: _Constants) -> str:
    """w of each row."""
    squares = _total(step, centred, rows, 2)
    if step.node.kind == "l2":
        root = step("Sqrt", [_as(step, squares, "squares", _FLOAT)], "root")
        root = step("Max", [root, known.term], "length")
        if step.node.output not in step.writer.program.edges:  # its unit is 1
            return root
    else:
        total = step("Add", [_as(step, squares, "squares", _DOUBLE), known.term], "above_zero")
        root = step("Sqrt", [step.cast(total, "total", _FLOAT)], "root")
    return step("Mul", [root, known.unit], "divisor")


def _deviation(step: _Step, centred: str, rows: _Rows, known: _Constants) -> tuple[str, str]:
    """r and m of each row."""
    sums, squares = _total(step, centred, rows, 1), _total(step, centred, rows, 2)
    linear, whole = _as(step, sums, "sum", known.carrier), _as(step, squares, "squares", known.carrier)
    products = step("Mul", [whole, known.whole], "count_squares"), step("Mul", [linear, linear], "square_of_sum")
    spread = _as(step, (step("Sub", list(products), "spread"), known.carrier), "spread", _DOUBLE)
    total = step.cast(step("Add", [spread, known.term], "above_zero"), "total", _FLOAT)
    deviation = step("Sqrt", [total], "root")
    if known.outside is not None:
        deviation = step("Add", [deviation, known.outside], "deviation")
    inverse = step("Div", [known.numerator, deviation], "inverse")
    return inverse, step("Div", [_as(step, sums, "sum", _FLOAT), known.count], "mean")


def _by_channel(step: _Step, centred: str, inverse: str, mean: str, known: _Constants, rank: int) -> str:
    """Of a group norm: `(c * a) + b`."""
    groups = step.node.groups
    gain = known.gain if known.gain.ndim == 0 else known.gain.reshape(1, groups, -1)
    bias = None if known.bias is None else known.bias.reshape(1, groups, -1)
    factor = step("Mul", [inverse, step.constant("gain", gain)], "factor")
    moved = step("Mul", [mean, factor], "moved")
    shift = step("Neg", [moved], "shift") if bias is None else step("Sub", [step.constant("bias", bias), moved], "shift")
    spread = []
    for name, value, alike in (("factor", factor, gain.ndim == 0), ("shift", shift, gain.ndim == 0 and bias is None)):
        width = known.width if alike else 1
        if width > 1:  # one number a group, for each of its channels
            value = step("Mul", [value, step.constant("each_channel", np.ones((1, 1, width), np.float32))], f"{name}.each")
        columns = [-1, groups * known.width, *(1,) * (rank - 2)]
        spread.append(step("Reshape", [value, step.writer.integers(f"{step.node.output}.columns", columns)], f"{name}.columns"))
    return step("Add", [step("Mul", [centred, spread[0]], "scaled"), spread[1]], "shifted")


def _divided_in_quantizing(step: _Step, value: str, divisor: str, rows: _Rows, shape: tuple[int | None, ...]) -> None:
    """Codes of a value, each row of which has a scale of its own."""
    writer, node = step.writer, step.node
    edge = writer.edge(node.output)
    scales = step("Reshape", [divisor, writer.integers(f"{node.output}.a_row", [-1])], "scales")
    zero = step.constant("zero", np.array(edge.zero_point, writer.dtype(edge)))
    zeros = step("Expand", [zero, step("Shape", [scales], "rows_in_all")], "zeros")
    raw = writer.unclipped(node.output, node.low, node.high)
    made = writer.fresh(f"{node.output}.codes_of_rows") if rows.moved else raw
    writer.node("QuantizeLinear", [value, scales, zeros], made, name=node.output, axis=0)
    if rows.moved:
        _restored(step, made, raw, rows, shape)
    writer.clipped(node.output, node.low, node.high)


def quantized(writer: Writer, value: str, output: str, node: Normalize) -> None:
    """`rint(value) + zy`, as QuantizeLinear clamps it."""
    unit, zero = writer.constant("unit", np.float32(1)), writer.scale_and_zero(node.output)[1]
    (op,) = kernels_of(node).exact
    writer.node(op, [value, unit, zero], output, name=node.output)


def _target(writer: Writer, node: Normalize, rows: _Rows, part: str) -> str:
    """The sizes of `rows`: the first is what remains, unless another is."""
    sizes = [0 if axis == 0 and None in rows.sizes[1:] else -1 if n is None else n for axis, n in enumerate(rows.sizes)]
    return writer.integers(f"{node.output}.{part}.shape", sizes)


def _restored(step: _Step, value: str, output: str, rows: _Rows, shape: tuple[int | None, ...]) -> None:
    """A tensor of rows in the sizes of the edge."""
    writer = step.writer
    if not rows.moved:
        writer.node("Identity", [value], output, name=f"{output}.same")
    elif sum(n is None for n in shape) > 1:
        sizes = writer.measured(step.node.input, f"{output}.sizes", 0, len(shape))
        writer.node("Reshape", [value, sizes], output, name=f"{output}.reshape")
    else:
        reshape_to(writer, value, output, shape)


def _placed(parameter: Any, rows: _Rows) -> Any:
    """A gain or bias as it meets rows."""
    if rows.flat:
        return parameter.reshape(-1) if parameter.ndim else parameter
    return over_rows(torch.from_numpy(np.asarray(parameter)), rows.axes).numpy()


def normalize(writer: Writer, node: Normalize) -> None:
    """The form of a runtime whose QuantizeLinear rounds once, and takes a scale a row."""
    write_norm(writer, node, quantized, scale_a_row=True)
