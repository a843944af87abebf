"""Nodes in the form in which OpenVINO computes the program's integers.

OpenVINO turns a QuantizeLinear into a FakeQuantize, which scales in its own order of operations: in QDQ form about one code
in ten thousand differs, already at the input. Here every rule is written out, and each step is exact or one float32
rounding, as in the program: sums of `(xq - zx) * wq` with scale 1, which OpenVINO still runs in its int8 kernels, then Add of
the bias, Mul, Round, Add of the zero point, Clip. Sums of two edges are tables of all pairs of codes.

Without VNNI its int8 kernels sum pairs of products in int16. A layer that this could saturate ships as two, with half of every
weight each, so that a pair is at most 255 * (64 + 64). OpenVINO adds their sums in the second kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer import nodes as program_nodes
from truequant.integer.nodes import Conv, Linear, Node
from truequant.runtimes.onnx import attention
from truequant.runtimes.onnx.layer_constants import scales
from truequant.runtimes.onnx.lookups import table_constant, write_pairs, write_table
from truequant.runtimes.onnx.norms import write_norm
from truequant.runtimes.onnx.writer import Writer, numpy_of
from truequant.runtimes.openvino.saturation import saturates_in_openvino


def _step(writer: Writer, of: str, op: str, inputs: list[str], part: str, **attributes: Any) -> str:
    output = writer.fresh(f"{of}.{part}")
    return writer.node(op, inputs, output, name=output, **attributes)


def _number(writer: Writer, of: str, part: str, value: Any) -> str:
    return writer.constant(f"{of}.{part}", np.asarray(value, np.float32))


def _codes(writer: Writer, value: str, name: str, low: int, high: int) -> None:
    """`clamp(value + zero point)` as codes of the edge `name`; the value is an integer in float32."""
    edge = writer.edge(name)
    if edge.zero_point:
        value = _step(writer, name, "Add", [value, _number(writer, name, "zero", edge.zero_point)], "shifted")
    bounds = [_number(writer, name, "lowest", low), _number(writer, name, "highest", high)]
    value = _step(writer, name, "Clip", [value, *bounds], "clamped")
    writer.raw[name] = name
    writer.node("Cast", [value], name, name=f"{name}.codes", to=3 if edge.signed else 2)


def _requantized(writer: Writer, acc: str, factor: Any, name: str, low: int, high: int) -> None:
    """`clamp(rint(acc * M) + zy, low, high)`."""
    value = _step(writer, name, "Mul", [acc, _number(writer, name, "factor", factor)], "scaled")
    _codes(writer, _step(writer, name, "Round", [value], "rounded"), name, low, high)


def _quantize(writer: Writer, node: program_nodes.Quantize) -> None:
    edge, name = writer.edge(node.output), node.output
    value = _step(writer, name, "Div", [node.input, _number(writer, name, "scale", edge.scale)], "divided")
    value = _step(writer, name, "Round", [value], "rounded")
    value = _step(writer, name, "Add", [value, _number(writer, name, "zero", edge.zero_point)], "shifted")
    bounds = [_number(writer, name, "lowest", edge.qmin), _number(writer, name, "highest", edge.qmax)]
    clamped = _step(writer, name, "Clip", [value, *bounds], "clamped")
    if edge.qmin:  # a clamp makes NaN its lower bound; the rule is code 0
        unknown = _step(writer, name, "IsNaN", [value], "unknown")
        clamped = _step(writer, name, "Where", [unknown, _number(writer, name, "zero_code", 0), clamped], "known")
    # The identity on whole numbers. OpenVINO looks for int8 kernels only in a graph that quantizes somewhere.
    unit = [writer.constant("unit", np.float32(1)), writer.constant("none", np.array(0, writer.dtype(edge)))]
    writer.raw[name] = name
    writer.node("QuantizeLinear", [clamped, *unit], name, name=f"{name}.quantize")


def _without_zero(writer: Writer, codes: str, zero: str, reader: str, part: str) -> str:
    """Codes less their zero point, float32: from there OpenVINO finds its int8 kernels."""
    return _step(writer, reader, "DequantizeLinear", [codes, writer.constant("unit", np.float32(1)), zero], part)


def _centred(writer: Writer, name: str, reader: str) -> str:
    """`xq - zx`."""
    return _without_zero(writer, name, writer.scale_and_zero(name)[1], reader, f"{name}.centred")


def _unsigned(writer: Writer, name: str, reader: str) -> tuple[str, int]:
    """Codes in uint8, and their zero point. Without VNNI, convolutions of signed codes halve their weights, and round them."""
    edge = writer.edge(name)
    if not edge.signed:
        return name, edge.zero_point
    value = _step(writer, reader, "Cast", [name], f"{name}.number", to=1)
    value = _step(writer, reader, "Add", [value, _number(writer, reader, f"{name}.raise", 128)], f"{name}.raised")
    return _step(writer, reader, "Cast", [value], f"{name}.unsigned", to=2), edge.zero_point + 128


def _bytes(writer: Writer, codes: str, zero_point: int, reader: str) -> str:
    """Codes in uint8 less their zero point."""
    zero = writer.constant(f"{reader}.zero_point", np.array(zero_point, np.uint8))
    return _without_zero(writer, codes, zero, reader, "centred")


def _sum(writer: Writer, node: Conv | Linear, op: str, x: str, codes: Any, **attributes: Any) -> str:
    """`sum((xq - zx) * wq)`. codes: the weights as `op` reads them."""
    acc = writer.fresh(f"{node.output}.sum")
    if not saturates_in_openvino(writer.program, node):
        return writer.node(op, [x, _weight(writer, node, codes, "weight")], acc, name=node.output, **attributes)
    half = codes >> 1  # and the rest: both lie in [-64, 64]
    parts = []
    for name, part, some in ((node.output, "half", half), (writer.fresh(f"{node.output}.second"), "rest", codes - half)):
        output = writer.fresh(f"{node.output}.sum_of_{part}")
        parts.append(writer.node(op, [x, _weight(writer, node, some, part)], output, name=name, **attributes))
    return writer.node("Add", parts, acc, name=acc)


def _weight(writer: Writer, node: Conv | Linear, codes: Any, part: str) -> str:
    none = writer.constant("no_zero_point", np.array(0, np.int8))
    return _without_zero(writer, writer.constant(f"{node.output}.{part}", codes), none, node.output, f"whole_{part}")


def _finish(writer: Writer, node: Conv | Linear, acc: str, shape: tuple[int, ...]) -> None:
    """Bias and requantization. The first Round changes nothing, but keeps OpenVINO from distributing product over sum."""
    pixel = len(shape) > 1 and all(n == 1 for n in writer.shapes[node.output][2:])
    if pixel:
        # With AVX-512, OpenVINO 2026.4 scales some channels of one pixel of one image wrongly where its convolution does it.
        acc = _step(writer, node.output, "Reshape", [acc, writer.integers("channels", [0, -1])], "channels")
    bias = _number(writer, node.output, "bias", numpy_of(node.bias).reshape((-1,) if pixel else shape))
    acc = _step(writer, node.output, "Round", [_step(writer, node.output, "Add", [acc, bias], "biased")], "whole_sum")
    if pixel:
        acc = _step(writer, node.output, "Reshape", [acc, writer.integers("pixel", [0, *shape[1:]])], "pixel")
    name, source = node.output, writer.edge(node.input)
    product = (np.float32(source.scale) * scales(node)).astype(np.float32)
    if name not in writer.program.edges:
        writer.node("Mul", [acc, _number(writer, name, "factor", product.reshape(shape))], name, name=f"{name}.scaled")
        return
    factor = (product / np.float32(writer.edge(name).scale)).astype(np.float32)
    _requantized(writer, acc, factor.reshape(shape), name, node.low, node.high)


def _conv(writer: Writer, node: Conv) -> None:
    begins, ends = [p[0] for p in node.padding], [p[1] for p in node.padding]
    codes, zero_point = _unsigned(writer, node.input, node.output)
    if zero_point and 1 < node.groups < node.weight.shape[0]:
        # With AMX, OpenVINO 2026.4 sums groups of few channels wrongly where a zero point is to be taken off. Its share of the
        # sums is a constant of the channel: it goes into the bias, and the padding is the zero point itself.
        codes = _padded(writer, node, codes, [0, 0, *begins, 0, 0, *ends], zero_point)
        begins, ends = [0] * len(begins), [0] * len(ends)
        node = replace(node, bias=node.bias.long() - zero_point * node.weight.long().flatten(1).sum(1))
        zero_point = 0
    acc = _sum(
        writer, node, "Conv", _bytes(writer, codes, zero_point, node.output), numpy_of(node.weight),
        kernel_shape=list(node.weight.shape[2:]), strides=list(node.stride), pads=[*begins, *ends],
        dilations=list(node.dilation), group=node.groups,
    )  # fmt: skip
    _finish(writer, node, acc, (1, -1, *(1,) * len(node.stride)))


def _padded(writer: Writer, node: Conv, codes: str, pads: list[int], zero_point: int) -> str:
    if not any(pads):
        return codes
    value = writer.constant(f"{node.output}.padding", np.array(zero_point, np.uint8))
    return _step(writer, node.output, "Pad", [codes, writer.integers(f"{node.output}.pads", pads), value], "padded")


def _linear(writer: Writer, node: Linear) -> None:
    x = _bytes(writer, *_unsigned(writer, node.input, node.output), node.output)
    _finish(writer, node, _sum(writer, node, "MatMul", x, np.ascontiguousarray(numpy_of(node.weight).T)), (-1,))


def _matmul(writer: Writer, node: program_nodes.MatMul) -> None:
    left, right = _centred(writer, node.left, node.output), _centred(writer, node.right, f"{node.output}.right")
    if saturates_in_openvino(writer.program, node):
        # A Round that changes nothing: OpenVINO multiplies in float32 what does not come from codes.
        right = _step(writer, node.output, "Round", [right], "right_as_float")
    acc = writer.node("MatMul", [left, right], writer.fresh(f"{node.output}.sum"), name=node.output)
    if node.output not in writer.program.edges:
        factor = numpy_of(node.value_scale(writer.program.edges))
        writer.node("Mul", [acc, _number(writer, node.output, "factor", factor)], node.output, name=f"{node.output}.scaled")
        return
    a, b, y = (np.float32(writer.edge(n).scale) for n in (node.left, node.right, node.output))
    _requantized(writer, acc, np.float32(np.float32(a * b) / y), node.output, node.low, node.high)


def _average(writer: Writer, node: program_nodes.GlobalAverage) -> None:
    shape = writer.shapes[node.input]
    sizes = [shape[a] for a in node.axes]
    if None in sizes:
        raise ExportError(f"'{node.output}': a mean over a dynamic axis", expected="fixed sizes in OpenVINO's form")
    count = math.prod(int(s or 0) for s in sizes)
    axes = writer.integers(f"{node.output}.axes", list(node.axes))
    inputs = [_centred(writer, node.input, node.output), axes]
    acc = writer.node("ReduceSum", inputs, writer.fresh(f"{node.output}.sum"), name=node.output, keepdims=int(node.keepdim))
    scale, y = np.float32(writer.edge(node.input).scale), np.float32(writer.edge(node.output).scale)
    factor = np.float32(scale / np.float32(y * np.float32(count)))
    _requantized(writer, acc, factor, node.output, node.low, node.high)


def _normalize(writer: Writer, node: program_nodes.Normalize) -> None:
    """The steps that every runtime is given; OpenVINO joins some of them, and computes float64 in float32."""

    def finish(writer: Writer, value: str, output: str, node: program_nodes.Normalize) -> None:
        edge, name = writer.edge(node.output), node.output
        value = _step(writer, name, "Round", [value], "rounded")
        value = _step(writer, name, "Add", [value, _number(writer, name, "zero", edge.zero_point)], "moved")
        bounds = [_number(writer, name, part, end) for part, end in (("lowest", node.low), ("highest", node.high))]
        value = _step(writer, name, "Clip", [value, *bounds], "clamped")
        writer.node("Cast", [value], output, name=f"{name}.codes", to=3 if edge.signed else 2)

    write_norm(writer, node, finish, scale_a_row=False)


def _looked_up(writer: Writer, node: Any, entries: Any, index: str) -> None:
    name, table = node.output, table_constant(writer, node, entries)
    writer.node("Gather", [table, index], name, name=name)


def _pairs(writer: Writer, node: program_nodes.Add | program_nodes.Sub | program_nodes.Mul) -> None:
    write_pairs(writer, node, _looked_up)


def _table(writer: Writer, node: program_nodes.Table) -> None:
    write_table(writer, node, _looked_up)


def _divided(writer: Writer, node: program_nodes.Softmax | program_nodes.Attend, dividend: str, divisors: str) -> None:
    """Rows over their own numbers. As scales of a quantizer OpenVINO would read them with an empty batch."""
    value = _step(writer, node.output, "Div", [dividend, divisors], "divided")
    _codes(writer, _step(writer, node.output, "Round", [value], "rounded"), node.output, node.low, node.high)


def _nibbles(writer: Writer, node: program_nodes.Attend, raised: str) -> str:
    """`float32(sum(e * (v - zv)))` by two products in float32, of the upper and the lower half of the bits of e.

    The partial sums of both stay below 2^24, so that what they add up to is rounded once.
    """
    name, values = node.output, _step(writer, node.output, "Cast", [node.values], "values_as_float", to=1)
    values = _step(
        writer, name, "Sub", [values, _number(writer, name, "values_zero", writer.edge(node.values).zero_point)], "v"
    )
    e = _step(writer, name, "Cast", [raised], "exponentials_as_float", to=1)
    upper = _step(
        writer, name, "Floor", [_step(writer, name, "Mul", [e, _number(writer, name, "nibble", 1 / 16)], "e16")], "up"
    )
    sixteen = _number(writer, name, "sixteen", 16)
    lower = _step(writer, name, "Sub", [e, _step(writer, name, "Mul", [upper, sixteen], "up16")], "low")
    above, below = (_step(writer, name, "MatMul", [part, values], f"sum_{n}") for n, part in enumerate((upper, lower)))
    return _step(writer, name, "Add", [_step(writer, name, "Mul", [above, sixteen], "sum_16"), below], "sum")


def _softmax(writer: Writer, node: program_nodes.Softmax) -> None:
    attention.softmax(writer, node, divide=_divided, steps=attention.written_out_steps)


def _attend(writer: Writer, node: program_nodes.Attend) -> None:
    attention.attend(writer, node, multiply=_nibbles, divide=_divided, steps=attention.written_out_steps)


WRITTEN_OUT: dict[type[Node], Callable[[Writer, Any], None]] = {
    program_nodes.Quantize: _quantize, Conv: _conv, Linear: _linear, program_nodes.MatMul: _matmul,
    program_nodes.GlobalAverage: _average, program_nodes.Add: _pairs, program_nodes.Sub: _pairs, program_nodes.Mul: _pairs,
    program_nodes.Table: _table, program_nodes.Normalize: _normalize, program_nodes.Softmax: _softmax,
    program_nodes.Attend: _attend,
}  # fmt: skip
