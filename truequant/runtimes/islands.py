"""Float islands in ONNX: the ops that a plan left in float, by the ONNX op that computes the same function.

An island is float arithmetic, whose order of summation belongs to the runtime: only what lies between islands is exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.runtimes.writer import Writer, numpy_of

Arguments = list[Any]


def write_island(writer: Writer, node: Island) -> None:
    """Append the ONNX node of a float op. `ExportError` where none is known."""
    if node.op not in _ISLANDS:
        raise ExportError(
            f"'{node.output}': the float op {node.op} has no ONNX form here",
            got=node.op,
            expected=", ".join(sorted(_ISLANDS)),
            fix="int8(x) and int8.save(path) hold it as it is",
        )
    arguments = [_resolved(writer, node, json.loads(text)) for text in node.arguments]
    options = {name: _resolved(writer, node, value) for name, value in map(json.loads, node.options)}
    _ISLANDS[node.op](writer, node, arguments + list(options.values()))


def _resolved(writer: Writer, node: Island, value: Any) -> Any:
    if isinstance(value, list):
        return [_resolved(writer, node, v) for v in value]
    if isinstance(value, dict) and "input" in value:
        return node.inputs[value["input"]]
    if isinstance(value, dict) and "tensor" in value:
        return writer.constant(f"{node.output}.constant_{value['tensor']}", numpy_of(node.tensors[value["tensor"]]))
    if isinstance(value, dict):  # a size: -1 in a reshape
        return -1
    return value


def _plain(op: str) -> Callable[[Writer, Island, Arguments], None]:
    def build(writer: Writer, node: Island, arguments: Arguments) -> None:
        writer.node(op, [a for a in arguments if isinstance(a, str)], node.output, name=node.output)

    return build


def _pairs(value: Any, n: int) -> list[int]:
    values = [value] * n if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def _conv(writer: Writer, node: Island, arguments: Arguments) -> None:
    x, weight, bias, stride, padding, dilation, groups = (arguments + [None, 1, 0, 1, 1][max(0, len(arguments) - 2) :])[:7]
    n = len(writer.shapes[x]) - 2
    pads = _pairs(padding, n)
    inputs = [x, weight] + ([bias] if bias is not None else [])
    writer.node(
        "Conv", inputs, node.output, name=node.output, strides=_pairs(stride, n), pads=[*pads, *pads],
        dilations=_pairs(dilation, n), group=groups,
    )  # fmt: skip


def _linear(writer: Writer, node: Island, arguments: Arguments) -> None:
    x, _, *rest = arguments
    product = node.output if not rest or rest[0] is None else writer.fresh(f"{node.output}.product")
    index = next(json.loads(t)["tensor"] for t in node.arguments[1:2])
    turned = writer.constant(f"{node.output}.weight", np.ascontiguousarray(numpy_of(node.tensors[index]).T))
    writer.node("MatMul", [x, turned], product, name=node.output)
    if product != node.output:
        writer.node("Add", [product, rest[0]], node.output, name=f"{node.output}.bias")


def _batch_norm(writer: Writer, node: Island, arguments: Arguments) -> None:
    x, gamma, beta, mean, var, _, _, eps, *_ = arguments
    channels = writer.shapes[x][1]
    ones = writer.constant(f"{node.output}.ones", np.ones(int(channels or 1), np.float32))
    zeros = writer.constant(f"{node.output}.zeros", np.zeros(int(channels or 1), np.float32))
    inputs = [x, gamma or ones, beta or zeros, mean, var]
    writer.node("BatchNormalization", inputs, node.output, name=node.output, epsilon=float(eps))


def _softmax(op: str) -> Callable[[Writer, Island, Arguments], None]:
    def build(writer: Writer, node: Island, arguments: Arguments) -> None:
        x, axis = arguments[0], int(arguments[1])
        if op == "LogSoftmax":
            writer.node("LogSoftmax", [x], node.output, name=node.output, axis=axis)
            return
        # Written out: between a dequantizer and a quantizer onnxruntime turns a Softmax into its own integer one.
        names = [writer.fresh(f"{node.output}.{part}") for part in ("max", "shifted", "exp", "sum")]
        axes = writer.integers(f"{node.output}.axes", [axis])
        writer.node("ReduceMax", [x, axes], names[0], name=names[0], keepdims=1)
        writer.node("Sub", [x, names[0]], names[1], name=names[1])
        writer.node("Exp", [names[1]], names[2], name=names[2])
        writer.node("ReduceSum", [names[2], axes], names[3], name=names[3], keepdims=1)
        writer.node("Div", [names[2], names[3]], node.output, name=node.output)

    return build


def _layer_norm(writer: Writer, node: Island, arguments: Arguments) -> None:
    x, shape, gamma, beta, eps = (arguments + [None, None, 1e-5][max(0, len(arguments) - 2) :])[:5]
    gamma = gamma or writer.constant(f"{node.output}.ones", np.ones(shape, np.float32))
    inputs = [x, gamma] + ([beta] if beta is not None else [])
    writer.node("LayerNormalization", inputs, node.output, name=node.output, axis=-len(shape), epsilon=float(eps))


def _reshape(writer: Writer, node: Island, arguments: Arguments) -> None:
    shape = [-1 if n is None else n for n in writer.shapes[node.output]]
    if shape.count(-1) > 1:
        raise ExportError(f"'{node.output}': a reshape with several dynamic sizes", got=str(shape), expected="one")
    writer.node("Reshape", [arguments[0], writer.integers(f"{node.output}.shape", shape)], node.output, name=node.output)


def _clamp(writer: Writer, node: Island, arguments: Arguments) -> None:
    bounds = [*arguments[1:3], None, None][:2]
    if node.op == "relu6.default":
        bounds = [0.0, 6.0]
    names = [
        "" if b is None else writer.constant(f"{node.output}.{k}", np.float32(b))
        for k, b in zip(("low", "high"), bounds, strict=True)
    ]
    writer.node("Clip", [arguments[0], *names], node.output, name=node.output)


def _mean(writer: Writer, node: Island, arguments: Arguments) -> None:
    x, axes, keepdim = [*arguments, False][:3]
    writer.node(
        "ReduceMean",
        [x, writer.integers(f"{node.output}.axes", axes)],
        node.output,
        name=node.output,
        keepdims=int(bool(keepdim)),
    )


def _scalar(op: str) -> Callable[[Writer, Island, Arguments], None]:
    def build(writer: Writer, node: Island, arguments: Arguments) -> None:
        operands = [a if isinstance(a, str) else writer.constant(f"{node.output}.scalar", np.float32(a)) for a in arguments[:2]]
        writer.node(op, operands, node.output, name=node.output)

    return build


_ISLANDS: dict[str, Callable[[Writer, Island, Arguments], None]] = {
    "conv1d.default": _conv, "conv2d.default": _conv, "conv3d.default": _conv, "linear.default": _linear,
    "batch_norm.default": _batch_norm, "softmax.int": _softmax("Softmax"), "log_softmax.int": _softmax("LogSoftmax"),
    "layer_norm.default": _layer_norm, "relu.default": _plain("Relu"), "sigmoid.default": _plain("Sigmoid"),
    "tanh.default": _plain("Tanh"), "exp.default": _plain("Exp"), "sqrt.default": _plain("Sqrt"),
    "neg.default": _plain("Neg"), "abs.default": _plain("Abs"), "matmul.default": _plain("MatMul"),
    "bmm.default": _plain("MatMul"), "relu6.default": _clamp, "hardtanh.default": _clamp, "clamp.default": _clamp,
    "add.Tensor": _scalar("Add"), "sub.Tensor": _scalar("Sub"), "mul.Tensor": _scalar("Mul"), "div.Tensor": _scalar("Div"),
    "add.Scalar": _scalar("Add"), "sub.Scalar": _scalar("Sub"), "mul.Scalar": _scalar("Mul"), "div.Scalar": _scalar("Div"),
    "mean.dim": _mean, "view.default": _reshape, "reshape.default": _reshape, "flatten.using_ints": _reshape,
    "unsqueeze.default": _reshape, "squeeze.default": _reshape, "squeeze.dim": _reshape,
    "dropout.default": _plain("Identity"), "contiguous.default": _plain("Identity"), "clone.default": _plain("Identity"),
}  # fmt: skip
