"""One function for each kind of program node: the ONNX nodes that are, or that runtimes turn into, one integer kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer import is_wide
from truequant.integer import nodes as program_nodes
from truequant.integer.nodes import Conv, Linear, Node
from truequant.runtimes.onnx import attention, float_linears
from truequant.runtimes.onnx.code_movement import MOVEMENTS
from truequant.runtimes.onnx.integer_layers import conv, linear, reshape_to
from truequant.runtimes.onnx.islands.ops import write_island
from truequant.runtimes.onnx.kernels import kernels_of
from truequant.runtimes.onnx.lookups import look_up_flat, write_lookup, write_table
from truequant.runtimes.onnx.norms import normalize
from truequant.runtimes.onnx.writer import Writer, numpy_of


def _quantize(writer: Writer, node: program_nodes.Quantize) -> None:
    edge = writer.edge(node.output)
    writer.quantized(node.input, node.output, edge.qmin, edge.qmax)


def _dequantize(writer: Writer, node: program_nodes.Dequantize) -> None:
    inputs = [node.input, *writer.scale_and_zero(node.input)]
    writer.node(kernels_of(node).op, inputs, node.output, name=node.output)


def binary(
    writer: Writer, node: program_nodes.MatMul | program_nodes.Add | program_nodes.Sub | program_nodes.Mul,
) -> None:  # fmt: skip
    """An op of two edges: the kernel by name, or the float op between quantizing ops."""
    kernels = kernels_of(node)
    if writer.by_name(node):
        operands = [part for name in (node.left, node.right) for part in (name, *writer.scale_and_zero(name))]
        operands += writer.scale_and_zero(node.output)
        writer.kernel(kernels.integer, operands, node.output, node.low, node.high, domain=kernels.domain)
        return
    inputs = [writer.dequantized(node.left, node.output), writer.dequantized(node.right, f"{node.output}.right")]
    value = writer.fresh(f"{node.output}.value")
    writer.node(kernels.op, inputs, value, name=node.output)
    writer.quantized(value, node.output, node.low, node.high)


def matmul(writer: Writer, node: program_nodes.MatMul) -> None:
    """A product of two edges, as codes or as values."""
    if node.output in writer.program.edges:
        binary(writer, node)
        return
    name = node.output
    if is_wide(node, writer.program.edges):
        operands = [writer.dequantized(node.left, name), writer.dequantized(node.right, f"{name}.right")]
        value = writer.node(kernels_of(node).op, operands, writer.fresh(f"{name}.product"), name=name)
        scale = writer.constant(f"{name}.scale", np.float32(node.factor))
    else:
        zeros = [writer.scale_and_zero(of)[1] for of in (node.left, node.right)]
        acc = writer.node(kernels_of(node).sums, [node.left, node.right, *zeros], writer.fresh(f"{name}.sum"), name=name)
        value = writer.node("Cast", [acc], writer.fresh(f"{name}.float"), name=f"{name}.float", to=1)
        scale = writer.constant(f"{name}.scale", numpy_of(node.value_scale(writer.program.edges)))
    writer.node("Mul", [value, scale], name, name=f"{name}.scaled")


def _pointwise(writer: Writer, node: program_nodes.Pointwise) -> None:
    writer.node(node.function.capitalize(), list(node.inputs), node.output, name=node.output)


def _table(writer: Writer, node: program_nodes.Table) -> None:
    write_table(writer, node, look_up_flat)


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
    _pooled(writer, node, source, output)
    if output == node.output:
        return
    writer.raw[node.output] = writer.raw[output]
    sizes_out = [1 if a in axes else shape[a] for a in range(rank)] if node.keepdim else [shape[a] for a in kept]
    reshape_to(writer, output, node.output, sizes_out)


def _average_pool(writer: Writer, node: program_nodes.AveragePool) -> None:
    _pooled(
        writer, node, node.input, node.output, kernel_shape=list(node.kernel), strides=list(node.stride),
        pads=[*node.padding, *node.padding], ceil_mode=int(node.ceil_mode), count_include_pad=0,
    )  # fmt: skip


def _pooled(
    writer: Writer, node: program_nodes.GlobalAverage | program_nodes.AveragePool, source: str, output: str, **attributes: Any
) -> None:
    """An average of codes: the kernel by name, or the float op between quantizing ops."""
    kernels = kernels_of(node)
    if writer.by_name(node):
        inputs = [source, *writer.scale_and_zero(source), *writer.scale_and_zero(output)]
        domain = kernels.domain
        writer.kernel(kernels.integer, inputs, output, node.low, node.high, domain=domain, channels_last=0, **attributes)
        return
    value = writer.fresh(f"{node.output}.value")
    writer.node(kernels.op, [writer.dequantized(source, node.output)], value, name=node.output, **attributes)
    writer.quantized(value, output, node.low, node.high)


WRITERS: dict[type[Node], Callable[[Writer, Any], None]] = {
    program_nodes.Quantize: _quantize, program_nodes.Dequantize: _dequantize, Conv: conv, Linear: linear,
    program_nodes.MatMul: matmul, program_nodes.Pointwise: _pointwise,
    program_nodes.Add: binary, program_nodes.Sub: binary, program_nodes.Mul: binary,
    program_nodes.Table: _table, program_nodes.Lookup: write_lookup, program_nodes.GlobalAverage: _average,
    program_nodes.AveragePool: _average_pool, program_nodes.Normalize: normalize, program_nodes.Island: write_island,
    program_nodes.WeightOnlyLinear: float_linears.weight_only, program_nodes.DynamicLinear: float_linears.dynamic,
    program_nodes.Softmax: attention.softmax, program_nodes.Attend: attention.attend, **MOVEMENTS,
}  # fmt: skip
"""The form of a node that every runtime which fuses QDQ reads. A dialect has others for some kinds."""
