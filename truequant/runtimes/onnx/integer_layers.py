"""Convolutions and linear layers in both layouts of the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer import is_wide
from truequant.integer.nodes import Conv, Linear
from truequant.runtimes.onnx.kernels import kernels_of
from truequant.runtimes.onnx.layer_constants import scales, weight_of
from truequant.runtimes.onnx.writer import Writer, numpy_of


def window_of(node: Conv) -> dict[str, Any]:
    """The attributes of Conv."""
    begins, ends = [p[0] for p in node.padding], [p[1] for p in node.padding]
    return {
        "kernel_shape": list(node.weight.shape[2:]), "strides": list(node.stride), "pads": [*begins, *ends],
        "dilations": list(node.dilation), "group": node.groups,
    }  # fmt: skip


def conv(writer: Writer, node: Conv) -> None:
    """A convolution of codes. `ExportError` between signed and unsigned ones."""
    attributes, kernels = window_of(node), kernels_of(node)
    if is_wide(node, writer.program.edges):
        _in_float(writer, node, node.input, node.output, **attributes)
        return
    if node.output not in writer.program.edges:
        weight = weight_of(writer, node, scalar_zero=True)
        zero = writer.scale_and_zero(node.input)[1]
        acc = writer.fresh(f"{node.output}.sum")
        writer.node(kernels.sums, [node.input, weight.codes, zero, weight.zero_point], acc, name=node.output, **attributes)
        _to_float(writer, node, acc, (1, -1, *(1,) * len(node.stride)))
        return
    signs = [writer.edge(n).signed for n in (node.input, node.output)]
    if len(set(signs)) == 2:
        raise ExportError(f"'{node.output}': a convolution between signed and unsigned codes", fix="one dtype for activations")
    if writer.by_name(node):
        inputs, domain = _operands(writer, node), kernels.domain
        writer.kernel(kernels.integer, inputs, node.output, node.low, node.high, domain=domain, **attributes)
        return
    _in_float(writer, node, node.input, node.output, **attributes)


def _in_float(writer: Writer, node: Conv | Linear, source: str, output: str, **attributes: Any) -> None:
    """A float op on dequantized codes, weights and biases, quantized again: what runtimes fuse, up to 8 bits."""
    op = kernels_of(node).op
    inputs = [writer.dequantized(source, node.output), *_dequantized(writer, node)]
    if node.output in writer.program.edges:
        value = writer.fresh(f"{node.output}.value")
        writer.node(op, inputs, value, name=node.output, **attributes)
        writer.quantized(value, output, node.low, node.high)
    else:
        writer.node(op, inputs, output, name=node.output, **attributes)


def linear(writer: Writer, node: Linear, source: str = "") -> None:
    """A linear layer on codes. source: the tensor that holds them, by default the edge itself."""
    name, shape = node.output, writer.shapes[node.input]
    coded = name in writer.program.edges
    if not coded and not is_wide(node, writer.program.edges):
        weight = weight_of(writer, node, transposed=True, scalar_zero=True)
        zero = writer.scale_and_zero(node.input)[1]
        acc = writer.fresh(f"{name}.sum")
        writer.node(kernels_of(node).sums, [node.input, weight.codes, zero, weight.zero_point], acc, name=name)
        _to_float(writer, node, acc, (-1,))
        return
    source, output = source or node.input, name
    flat = len(shape) != 2
    if flat:  # Gemm takes two axes: codes are reshaped around it
        source = writer.fresh(f"{name}.rows")
        writer.node(
            "Reshape", [node.input, writer.integers(f"{name}.rows.shape", [-1, int(node.weight.shape[1])])], source, name=source
        )
        output = writer.fresh(f"{name}.flat")
        writer.alias(source, node.input)
        if coded:
            writer.alias(output, name)
    _rows(writer, node, source, output)
    if flat:
        if coded:
            writer.raw[name] = writer.raw[output]
        features = int(node.weight.shape[0])
        if sum(n is None for n in shape[:-1]) > 1:
            outer = writer.measured(node.input, f"{name}.outer", 0, len(shape) - 1)
            last = writer.integers(f"{name}.features", [features])
            writer.node("Reshape", [output, writer.joined(f"{name}.shape", [outer, last])], name, name=f"{name}.reshape")
            return
        reshape_to(writer, output, name, (*shape[:-1], features))


def _rows(writer: Writer, node: Linear, source: str, output: str) -> None:
    """A linear layer over `(rows, in)`."""
    if writer.by_name(node):
        weight, y = weight_of(writer, node), writer.scale_and_zero(output)
        x = [source, *writer.scale_and_zero(source)]
        inputs = [*x, weight.codes, weight.scale, weight.zero_point, _bias(writer, node), *y]
        kernels = kernels_of(node)
        writer.kernel(kernels.integer, inputs, output, node.low, node.high, domain=kernels.domain, transB=1)
        return
    _in_float(writer, node, source, output, transB=1)


def _operands(writer: Writer, node: Conv) -> list[str]:
    """The inputs of a QLinearConv."""
    weight, y = weight_of(writer, node), writer.scale_and_zero(node.output)
    x = [node.input, *writer.scale_and_zero(node.input)]
    return [*x, weight.codes, weight.scale, weight.zero_point, *y, _bias(writer, node)]


def _bias(writer: Writer, node: Conv | Linear) -> str:
    return writer.constant(f"{node.output}.bias", numpy_of(node.bias))


def _dequantized(writer: Writer, node: Conv | Linear) -> list[str]:
    """Weight and bias as values."""
    name, weight = node.output, weight_of(writer, node)
    bias = [
        _bias(writer, node),
        writer.constant(f"{name}.bias_scale", _sum_scale(writer, node)),
        writer.constant(f"{name}.bias_zero_point", np.zeros(len(node.weight), np.int32)),
    ]
    made = []
    for kind, constants in (("weight", [weight.codes, weight.scale, weight.zero_point]), ("bias", bias)):
        value = writer.fresh(f"{name}.{kind}.dequantized")
        made.append(writer.node("DequantizeLinear", constants, value, name=value, axis=0))
    return made


def _sum_scale(writer: Writer, node: Conv | Linear) -> Any:
    """`float32(sx * sw)`."""
    return (np.float32(writer.edge(node.input).scale) * scales(node)).astype(np.float32)


def _to_float(writer: Writer, node: Conv | Linear, acc: str, shape: tuple[int, ...]) -> None:
    """`float32(acc + bq) * float32(sx * sw)`."""
    biased, cast = writer.fresh(f"{node.output}.biased"), writer.fresh(f"{node.output}.float")
    writer.node("Add", [acc, writer.constant(f"{node.output}.bias", numpy_of(node.bias).reshape(shape))], biased, name=biased)
    writer.node("Cast", [biased], cast, name=cast, to=1)
    scale = writer.constant(f"{node.output}.scale", _sum_scale(writer, node).reshape(shape))
    writer.node("Mul", [cast, scale], node.output, name=f"{node.output}.scaled")


def reshape_to(writer: Writer, source: str, name: str, sizes: Sequence[int | None]) -> None:
    """Codes in a shape of which one size may be dynamic."""
    if sum(n is None for n in sizes) > 1:
        raise ExportError(f"'{name}': a shape with several dynamic sizes", got=str(tuple(sizes)), expected="one")
    target = [-1 if n is None else n for n in sizes]
    writer.node("Reshape", [source, writer.integers(f"{name}.shape", target)], name, name=f"{name}.reshape")
