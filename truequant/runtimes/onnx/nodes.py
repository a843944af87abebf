"""One function for each kind of program node: the ONNX nodes that are, or that onnxruntime turns into, one integer kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer import is_wide
from truequant.integer import nodes as program_nodes
from truequant.integer.nodes import Conv, Linear, Node
from truequant.runtimes.onnx import float_linears
from truequant.runtimes.onnx.code_movement import MOVEMENTS
from truequant.runtimes.onnx.integer_layers import conv, linear, reshape_to
from truequant.runtimes.onnx.islands.ops import write_island
from truequant.runtimes.onnx.writer import MICROSOFT, Writer, numpy_of
from truequant.runtimes.onnxruntime.channels_last import between_convolutions
from truequant.runtimes.onnxruntime.pair_proofs import all_pairs, proven
from truequant.runtimes.openvino.nodes import WRITTEN_OUT


def write(writer: Writer, node: Node) -> None:
    """Append the ONNX nodes of a program node."""
    if writer.form == "openvino" and is_wide(node, writer.program.edges):
        raise ExportError(
            f"'{node.output}': OpenVINO's form has no codes of 16 bits", fix="form='qdq', or activations of 8 bits"
        )
    writers = _WRITERS | WRITTEN_OUT if writer.form == "openvino" else _WRITERS
    writers[type(node)](writer, node)


def _quantize(writer: Writer, node: program_nodes.Quantize) -> None:
    edge = writer.edge(node.output)
    writer.quantized(node.input, node.output, edge.qmin, edge.qmax)


def _dequantize(writer: Writer, node: program_nodes.Dequantize) -> None:
    writer.node("DequantizeLinear", [node.input, *writer.scale_and_zero(node.input)], node.output, name=node.output)


def _matmul(writer: Writer, node: program_nodes.MatMul) -> None:
    if writer.by_name(node):
        writer.kernel("QLinearMatMul", _operands(writer, node), node.output, node.low, node.high)
        return
    inputs = [writer.dequantized(node.left, node.output), writer.dequantized(node.right, f"{node.output}.right")]
    value = writer.fresh(f"{node.output}.value")
    writer.node("MatMul", inputs, value, name=node.output)
    writer.quantized(value, node.output, node.low, node.high)


def _operands(
    writer: Writer, node: program_nodes.MatMul | program_nodes.Add | program_nodes.Sub | program_nodes.Mul
) -> list[str]:
    """Both operands with their scales and zero points, and those of the result."""
    operands = [part for name in (node.left, node.right) for part in (name, *writer.scale_and_zero(name))]
    return [*operands, *writer.scale_and_zero(node.output)]


def _binary(writer: Writer, node: program_nodes.Add | program_nodes.Sub | program_nodes.Mul) -> None:
    if writer.form == "openvino" or not proven(writer.program, node, writer.form):
        _pair_table(writer, node)
        return
    if writer.by_name(node):
        op = f"QLinear{type(node).__name__}"
        writer.kernel(op, _operands(writer, node), node.output, node.low, node.high, domain=MICROSOFT)
        return
    inputs = [writer.dequantized(node.left, node.output), writer.dequantized(node.right, f"{node.output}.right")]
    value = writer.fresh(f"{node.output}.value")
    writer.node(type(node).__name__, inputs, value, name=node.output)
    writer.quantized(value, node.output, node.low, node.high)


def _pair_table(writer: Writer, node: program_nodes.Add | program_nodes.Sub | program_nodes.Mul) -> None:
    """All pairs of codes in one table: exact whatever the runtime's own arithmetic is."""
    left, right = writer.edge(node.left), writer.edge(node.right)
    entries = all_pairs(writer.program, node).astype(writer.dtype(writer.edge(node.output)))
    levels = right.qmax - right.qmin + 1
    indices = []
    for name, edge, step in ((node.left, left, levels), (node.right, right, 1)):
        cast, moved = writer.fresh(f"{node.output}.{name}.cast"), writer.fresh(f"{node.output}.{name}.row")
        writer.node("Cast", [name], cast, name=cast, to=6)
        first = writer.fresh(f"{node.output}.{name}.first")
        writer.node("Sub", [cast, writer.constant("first_code", np.int32(edge.qmin))], first, name=first)
        writer.node("Mul", [first, writer.constant("step", np.int32(step))], moved, name=moved)
        indices.append(moved)
    index = writer.fresh(f"{node.output}.index")
    writer.node("Add", indices, index, name=index)
    _taken(writer, node.output, entries, index)


def _taken(writer: Writer, name: str, entries: Any, index: str) -> None:
    """The edge `name`: `entries[index]`. GatherElements over one axis takes a third of the time of Gather in onnxruntime."""
    table, shape = writer.constant(f"{name}.table", entries), writer.shapes[name]
    writer.raw[name] = name
    if writer.form == "openvino" or len(shape) < 2:
        writer.node("Gather" if writer.form == "openvino" else "GatherElements", [table, index], name, name=name)
        return
    flat, rows = writer.fresh(f"{name}.flat_index"), writer.fresh(f"{name}.flat")
    moved = between_convolutions(writer, name)
    if moved:
        index = writer.node("Transpose", [index], writer.fresh(f"{name}.moved_index"), name=f"{name}.moved", perm=moved.there)
    writer.node("Reshape", [index, writer.integers("flat", [-1])], flat, name=flat)
    writer.node("GatherElements", [table, flat], rows, name=name)
    if moved:
        lying = writer.fresh(f"{name}.channels_last")
        reshape_to(writer, rows, lying, tuple(shape[axis] for axis in moved.there))
        writer.node("Transpose", [lying], name, name=f"{name}.order", perm=moved.back)
    elif sum(n is None for n in shape) > 1:
        whole = writer.measured(index, f"{name}.shape", 0, len(shape))
        writer.node("Reshape", [rows, whole], name, name=f"{name}.reshape")
    else:
        reshape_to(writer, rows, name, shape)


def _table(writer: Writer, node: program_nodes.Table) -> None:
    source, output = writer.edge(node.input), writer.edge(node.output)
    cast = writer.fresh(f"{node.output}.cast")
    writer.node("Cast", [node.input], cast, name=cast, to=6)
    if source.qmin:
        index = writer.fresh(f"{node.output}.index")
        writer.node("Sub", [cast, writer.constant("first_code", np.int32(source.qmin))], index, name=index)
        cast = index
    _taken(writer, node.output, numpy_of(node.entries).astype(writer.dtype(output)), cast)


def _lookup(writer: Writer, node: program_nodes.Lookup) -> None:
    entries = numpy_of(node.entries).astype(writer.dtype(writer.edge(node.output)))
    entries = writer.constant(f"{node.output}.table", entries)
    writer.node("Gather", [entries, node.input], node.output, name=node.output)


def _average(writer: Writer, node: program_nodes.GlobalAverage) -> None:
    """GlobalAveragePool over the last axes of (N, C, …); other axes are moved there on codes."""
    shape = writer.shapes[node.input]
    rank, axes = len(shape), sorted(a % len(shape) for a in node.axes)
    kept = [a for a in range(rank) if a not in axes]
    source, plain = node.input, axes == list(range(2, rank)) and node.keepdim
    output = node.output if plain else writer.fresh(f"{node.output}.pooled")
    if kept + axes != list(range(rank)):
        source = writer.fresh(f"{node.output}.moved")
        writer.node("Transpose", [node.input], source, name=source, perm=kept + axes)
        writer.alias(source, node.input)
    if len(kept) != 2:  # N and one axis of channels
        folded = writer.fresh(f"{node.output}.folded")
        sizes = [shape[a] for a in axes]
        if None in sizes:
            raise ExportError(f"'{node.output}': an average over a dynamic axis of {rank} axes", expected="fixed sizes")
        target = [0, -1 if len(kept) > 1 else 1, *(int(s or 0) for s in sizes)]
        writer.node("Reshape", [source, writer.integers(f"{folded}.shape", target)], folded, name=folded)
        writer.alias(folded, node.input)
        source = folded
    if output != node.output:
        writer.alias(output, node.output)
    if writer.by_name(node):
        inputs = [source, *writer.scale_and_zero(source), *writer.scale_and_zero(output)]
        writer.kernel("QLinearGlobalAveragePool", inputs, output, node.low, node.high, domain=MICROSOFT, channels_last=0)
    else:
        value = writer.fresh(f"{node.output}.value")
        writer.node("GlobalAveragePool", [writer.dequantized(source, node.output)], value, name=node.output)
        writer.quantized(value, output, node.low, node.high)
    if output == node.output:
        return
    writer.raw[node.output] = writer.raw[output]
    sizes_out = [1 if a in axes else shape[a] for a in range(rank)] if node.keepdim else [shape[a] for a in kept]
    reshape_to(writer, output, node.output, sizes_out)


def _average_pool(writer: Writer, node: program_nodes.AveragePool) -> None:
    attributes: dict[str, Any] = {
        "kernel_shape": list(node.kernel), "strides": list(node.stride), "pads": [*node.padding, *node.padding],
        "ceil_mode": int(node.ceil_mode), "count_include_pad": 0,
    }  # fmt: skip
    if writer.by_name(node):
        inputs = [node.input, *writer.scale_and_zero(node.input), *writer.scale_and_zero(node.output)]
        name = node.output
        writer.kernel("QLinearAveragePool", inputs, name, node.low, node.high, domain=MICROSOFT, channels_last=0, **attributes)
        return
    value = writer.fresh(f"{node.output}.value")
    writer.node("AveragePool", [writer.dequantized(node.input, node.output)], value, name=node.output, **attributes)
    writer.quantized(value, node.output, node.low, node.high)


_WRITERS: dict[type[Node], Callable[[Writer, Any], None]] = {
    program_nodes.Quantize: _quantize, program_nodes.Dequantize: _dequantize, Conv: conv, Linear: linear,
    program_nodes.MatMul: _matmul, program_nodes.Add: _binary, program_nodes.Sub: _binary, program_nodes.Mul: _binary,
    program_nodes.Table: _table, program_nodes.Lookup: _lookup, program_nodes.GlobalAverage: _average,
    program_nodes.AveragePool: _average_pool, program_nodes.Island: write_island,
    program_nodes.WeightOnlyLinear: float_linears.weight_only, program_nodes.DynamicLinear: float_linears.dynamic, **MOVEMENTS,
}  # fmt: skip
