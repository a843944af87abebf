"""One function for each kind of program node: the ONNX nodes that onnxruntime turns into one integer kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from truequant import numerics
from truequant.errors import ExportError
from truequant.integer import nodes as program_nodes
from truequant.integer.nodes import Conv, Linear, Node
from truequant.runtimes.islands import write_island
from truequant.runtimes.onnx_movement import MOVEMENTS
from truequant.runtimes.proofs import all_pairs, proven
from truequant.runtimes.writer import Writer, numpy_of


def write(writer: Writer, node: Node) -> None:
    """Append the ONNX nodes of a program node."""
    _WRITERS[type(node)](writer, node)


def saturates(writer: Writer, node: Conv | Linear) -> bool:
    """Whether a CPU without VNNI may saturate this layer in int16, so that its weights ship unsigned."""
    if writer.program.target != "onnxruntime":
        return False
    edge = writer.edge(node.input)
    # Kernels turn signed codes into unsigned ones by adding 128.
    return numerics.pair_bound(node.weight, 255 if edge.signed else edge.qmax) > numerics.INT16_MAX


def _quantize(writer: Writer, node: program_nodes.Quantize) -> None:
    edge = writer.edge(node.output)
    writer.quantized(node.input, node.output, edge.qmin, edge.qmax)


def _dequantize(writer: Writer, node: program_nodes.Dequantize) -> None:
    writer.node("DequantizeLinear", [node.input, *writer.scale_and_zero(node.input)], node.output, name=node.output)


def _parameters(writer: Writer, node: Conv | Linear) -> list[str]:
    """Dequantized weight and bias."""
    name = node.output
    edge = writer.edge(node.input)
    weight, zero = numpy_of(node.weight), np.array(0, np.int8)
    if edge.signed and saturates(writer, node):
        raise _saturation(writer, node)
    if saturates(writer, node):
        weight, zero = (weight.astype(np.int16) + 128).astype(np.uint8), np.array(128, np.uint8)
    scale = numpy_of(node.weight_scale)
    if len(scale) == 1:
        scale = np.repeat(scale, len(weight))
    bias_scale = (np.float32(edge.scale) * scale).astype(np.float32)
    made = []
    for kind, codes, s, z in (
        ("weight", weight, scale, np.full(len(weight), zero, weight.dtype)),
        ("bias", numpy_of(node.bias), bias_scale, np.zeros(len(weight), np.int32)),
    ):
        constants = [
            writer.constant(f"{name}.{kind}", codes),
            writer.constant(f"{name}.{kind}_scale", s),
            writer.constant(f"{name}.{kind}_zero_point", z),
        ]
        value = writer.fresh(f"{name}.{kind}.dequantized")
        made.append(writer.node("DequantizeLinear", constants, value, name=value, axis=0))
    return made


def _saturation(writer: Writer, node: Conv | Linear) -> ExportError:
    edge = writer.edge(node.input)
    return ExportError(
        f"'{node.output}' may saturate on CPUs without VNNI, and signed activations leave it no exact form",
        got=f"codes {edge.qmin} … {edge.qmax} times {int(node.weight.min())} … {int(node.weight.max())}",
        expected="unsigned activations, or weights of at most 7 bits",
        fix="QConfig.preset('w7a8'), or activation=QuantScheme(uint8)",
    )


def _conv(writer: Writer, node: Conv) -> None:
    begins, ends = [p[0] for p in node.padding], [p[1] for p in node.padding]
    attributes: dict[str, Any] = {
        "kernel_shape": list(node.weight.shape[2:]), "strides": list(node.stride), "pads": [*begins, *ends],
        "dilations": list(node.dilation), "group": node.groups,
    }  # fmt: skip
    if node.output not in writer.program.edges or writer.edge(node.input).signed or writer.edge(node.output).signed:
        _direct_conv(writer, node, attributes)
        return
    inputs = [writer.dequantized(node.input, node.output), *_parameters(writer, node)]
    value = writer.fresh(f"{node.output}.value")
    writer.node("Conv", inputs, value, name=node.output, **attributes)
    writer.quantized(value, node.output, node.low, node.high)


def _direct_conv(writer: Writer, node: Conv, attributes: dict[str, Any]) -> None:
    """A convolution that QDQ fusion does not reach: with a float result or signed activations."""
    if node.output in writer.program.edges:
        if writer.edge(node.input).signed != writer.edge(node.output).signed:
            raise ExportError(
                f"'{node.output}': a convolution between signed and unsigned codes", fix="one dtype for activations"
            )
        if saturates(writer, node):
            raise _saturation(writer, node)
        raw = (
            node.output
            if (node.low, node.high) == writer.limits(writer.edge(node.output))
            else writer.fresh(f"{node.output}.unclipped")
        )
        writer.raw[node.output] = raw
        scale = numpy_of(node.weight_scale)
        inputs = [
            node.input, *writer.scale_and_zero(node.input), writer.constant(f"{node.output}.weight", numpy_of(node.weight)),
            writer.constant(f"{node.output}.weight_scale", scale if len(scale) > 1 else np.repeat(scale, len(node.weight))),
            writer.constant(f"{node.output}.weight_zero_point", np.zeros(len(node.weight), np.int8)),
            *writer.scale_and_zero(node.output), writer.constant(f"{node.output}.bias", numpy_of(node.bias)),
        ]  # fmt: skip
        writer.node("QLinearConv", inputs, raw, name=node.output, **attributes)
        if raw != node.output:
            writer.clip(raw, node.output, node.low, node.high)
        return
    x, zero = node.input, writer.scale_and_zero(node.input)[1]
    weight, weight_zero = numpy_of(node.weight), np.array(0, np.int8)
    if saturates(writer, node):
        weight, weight_zero = (weight.astype(np.int16) + 128).astype(np.uint8), np.array(128, np.uint8)
    acc = writer.fresh(f"{node.output}.sum")
    inputs = [
        x,
        writer.constant(f"{node.output}.weight", weight),
        zero,
        writer.constant(f"{node.output}.weight_zero", weight_zero),
    ]
    writer.node("ConvInteger", inputs, acc, name=node.output, **attributes)
    shape = (1, -1, *(1,) * len(node.stride))
    _to_float(writer, node, acc, shape)


def _to_float(writer: Writer, node: Conv | Linear, acc: str, shape: tuple[int, ...]) -> None:
    """`float32(acc + bq) * float32(sx * sw)`."""
    scale = (np.float32(writer.edge(node.input).scale) * numpy_of(node.weight_scale)).astype(np.float32)
    scale = scale if len(scale) > 1 else np.repeat(scale, len(node.weight))
    biased, cast = writer.fresh(f"{node.output}.biased"), writer.fresh(f"{node.output}.float")
    writer.node("Add", [acc, writer.constant(f"{node.output}.bias", numpy_of(node.bias).reshape(shape))], biased, name=biased)
    writer.node("Cast", [biased], cast, name=cast, to=1)
    writer.node(
        "Mul", [cast, writer.constant(f"{node.output}.scale", scale.reshape(shape))], node.output, name=f"{node.output}.scaled"
    )


def _linear(writer: Writer, node: Linear) -> None:
    name, shape = node.output, writer.shapes[node.input]
    if node.output not in writer.program.edges:
        weight, weight_zero = numpy_of(node.weight), np.array(0, np.int8)
        if saturates(writer, node):
            weight, weight_zero = (weight.astype(np.int16) + 128).astype(np.uint8), np.array(128, np.uint8)
        acc = writer.fresh(f"{name}.sum")
        zero = writer.scale_and_zero(node.input)[1]
        constants = [
            writer.constant(f"{name}.weight", np.ascontiguousarray(weight.T)),
            zero,
            writer.constant(f"{name}.weight_zero", weight_zero),
        ]
        writer.node("MatMulInteger", [node.input, *constants], acc, name=name)
        _to_float(writer, node, acc, (-1,))
        return
    source, output = node.input, name
    flat = len(shape) != 2
    if flat:  # Gemm takes two axes: codes are reshaped around it
        source = writer.fresh(f"{name}.rows")
        writer.node(
            "Reshape", [node.input, writer.integers(f"{name}.rows.shape", [-1, int(node.weight.shape[1])])], source, name=source
        )
        output = writer.fresh(f"{name}.flat")
        writer.alias(source, node.input)
        writer.alias(output, name)
    inputs = [writer.dequantized(source, name), *_parameters(writer, node)]
    value = writer.fresh(f"{name}.value")
    writer.node("Gemm", inputs, value, name=name, transB=1)
    writer.quantized(value, output, node.low, node.high)
    if flat:
        writer.raw[name] = writer.raw[output]
        if sum(n is None for n in shape[:-1]) > 1:
            outer = writer.measured(node.input, f"{name}.outer", 0, len(shape) - 1)
            last = writer.integers(f"{name}.features", [int(node.weight.shape[0])])
            writer.node("Reshape", [output, writer.joined(f"{name}.shape", [outer, last])], name, name=f"{name}.reshape")
            return
        _reshape_to(writer, output, name, (*shape[:-1], int(node.weight.shape[0])))


def _reshape_to(writer: Writer, source: str, name: str, sizes: Sequence[int | None]) -> None:
    """Codes in a shape of which one size may be dynamic."""
    if sum(n is None for n in sizes) > 1:
        raise ExportError(f"'{name}': a shape with several dynamic sizes", got=str(tuple(sizes)), expected="one")
    target = [-1 if n is None else n for n in sizes]
    writer.node("Reshape", [source, writer.integers(f"{name}.shape", target)], name, name=f"{name}.reshape")


def _matmul(writer: Writer, node: program_nodes.MatMul) -> None:
    inputs = [writer.dequantized(node.left, node.output), writer.dequantized(node.right, f"{node.output}.right")]
    value = writer.fresh(f"{node.output}.value")
    writer.node("MatMul", inputs, value, name=node.output)
    writer.quantized(value, node.output, node.low, node.high)


def _binary(writer: Writer, node: program_nodes.Add | program_nodes.Sub | program_nodes.Mul) -> None:
    if not proven(writer.program, node):
        _pair_table(writer, node)
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
    writer.raw[node.output] = node.output
    writer.node("Gather", [writer.constant(f"{node.output}.table", entries), index], node.output, name=node.output)


def _table(writer: Writer, node: program_nodes.Table) -> None:
    source, output = writer.edge(node.input), writer.edge(node.output)
    cast = writer.fresh(f"{node.output}.cast")
    writer.node("Cast", [node.input], cast, name=cast, to=6)
    if source.qmin:
        index = writer.fresh(f"{node.output}.index")
        writer.node("Sub", [cast, writer.constant("first_code", np.int32(source.qmin))], index, name=index)
        cast = index
    entries = numpy_of(node.entries).astype(writer.dtype(output))
    writer.raw[node.output] = node.output
    writer.node("Gather", [writer.constant(f"{node.output}.table", entries), cast], node.output, name=node.output)


def _lookup(writer: Writer, node: program_nodes.Lookup) -> None:
    entries = writer.constant(f"{node.output}.table", numpy_of(node.entries))
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
    value = writer.fresh(f"{node.output}.value")
    writer.node("GlobalAveragePool", [writer.dequantized(source, node.output)], value, name=node.output)
    writer.quantized(value, output, node.low, node.high)
    if output == node.output:
        return
    writer.raw[node.output] = writer.raw[output]
    sizes_out = [1 if a in axes else shape[a] for a in range(rank)] if node.keepdim else [shape[a] for a in kept]
    _reshape_to(writer, output, node.output, sizes_out)


def _average_pool(writer: Writer, node: program_nodes.AveragePool) -> None:
    value = writer.fresh(f"{node.output}.value")
    writer.node(
        "AveragePool", [writer.dequantized(node.input, node.output)], value, name=node.output,
        kernel_shape=list(node.kernel), strides=list(node.stride), pads=[*node.padding, *node.padding],
        ceil_mode=int(node.ceil_mode), count_include_pad=0,
    )  # fmt: skip
    writer.quantized(value, node.output, node.low, node.high)


_WRITERS: dict[type[Node], Callable[[Writer, Any], None]] = {
    program_nodes.Quantize: _quantize, program_nodes.Dequantize: _dequantize, Conv: _conv, Linear: _linear,
    program_nodes.MatMul: _matmul,
    program_nodes.Add: _binary, program_nodes.Sub: _binary, program_nodes.Mul: _binary, program_nodes.Table: _table,
    program_nodes.Lookup: _lookup, program_nodes.GlobalAverage: _average,
    program_nodes.AveragePool: _average_pool, program_nodes.Island: write_island, **MOVEMENTS,
}  # fmt: skip
