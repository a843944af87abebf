"""Linear layers on values in ONNX: an integer weight behind a DequantizeLinear, or tokens quantized by plain ops.

Their float parts round as the runtime does: no file with one of them is EXACT.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from truequant import numerics
from truequant.integer.nodes import DynamicLinear, WeightOnlyLinear
from truequant.runtimes.onnx.layer_constants import packed
from truequant.runtimes.onnx.writer import Writer, numpy_of
from truequant.runtimes.packages import onnx


def weight_only(writer: Writer, node: WeightOnlyLinear) -> None:
    """DequantizeLinear of int4 or int8 codes `(in, out)`, one scale a column or a block of rows, into a MatMul."""
    name = node.output
    codes = np.ascontiguousarray(numpy_of(node.weight).T)
    if codes.min() >= -8 and codes.max() <= 7:
        codes = codes.astype(onnx().helper.tensor_dtype_to_np_dtype(onnx().TensorProto.INT4))
    scale = numpy_of(node.weight_scale)
    groups: dict[str, Any] = {"axis": 1}
    if scale.shape[1] > 1:
        groups = {"axis": 0, "block_size": len(codes) // scale.shape[1]}
    scales = np.ascontiguousarray(scale.T) if scale.shape[1] > 1 else scale[:, 0]
    parts = [writer.constant(f"{name}.weight", codes), writer.constant(f"{name}.weight_scale", scales)]
    weight = writer.fresh(f"{name}.weight.dequantized")
    writer.node("DequantizeLinear", parts, weight, name=weight, **groups)
    product = name if node.bias is None else writer.fresh(f"{name}.product")
    writer.node("MatMul", [_floats(writer, node), weight], product, name=name)
    _biased(writer, node, product)


def dynamic(writer: Writer, node: DynamicLinear) -> None:
    """Abs, ReduceMax, Div, Round, Clip and Cast for each token, then MatMulInteger; groups are a batch of products.

    Codes are written unsigned with zero point 128, and weights too where pairs could saturate: exact on every x86 CPU.
    """
    name, axes = node.output, writer.integers("last_axis", [-1])

    def step(op: str, inputs: list[str], part: str, **attributes: Any) -> str:
        output = writer.fresh(f"{name}.{part}")
        return writer.node(op, inputs, output, name=output, **attributes)

    def number(value: float, part: str) -> str:
        return writer.constant(f"{name}.{part}", np.float32(value))

    x = _floats(writer, node)
    largest = step("ReduceMax", [step("Abs", [x], "abs"), axes], "largest", keepdims=1)
    least, most = number(numerics.MIN_SCALE, "min_scale"), number(numerics.MAX_SCALE, "max_scale")
    token = step("Clip", [step("Div", [largest, number(node.qmax, "qmax")], "step"), least, most], "token_scale")
    rounded = step("Round", [step("Div", [x, token], "position")], "rounded")
    codes = step("Clip", [rounded, number(-node.qmax, "low"), number(node.qmax, "high")], "signed")
    codes = step("Cast", [step("Add", [codes, number(128, "shift")], "shifted")], "codes", to=int(onnx().TensorProto.UINT8))
    weight, zero = _weight(writer, node)
    zero_x = writer.constant(f"{name}.zero_point", np.array(128, np.uint8))
    groups = node.weight_scale.shape[1]
    scale = numpy_of(node.weight_scale)
    product = name if node.bias is None else writer.fresh(f"{name}.product")
    if groups == 1:
        acc = writer.fresh(f"{name}.sum")
        writer.node("MatMulInteger", [codes, weight, zero_x, zero], acc, name=name)
        # One factor after the other: onnxruntime fuses a product of both as if a single scale were meant for all tokens.
        columns = writer.constant(f"{name}.weight_scale", scale[:, 0])
        parts = step("Mul", [step("Cast", [acc], "float", to=1), columns], "columns")
        writer.node("Mul", [parts, token], product, name=f"{name}.scaled")
    else:
        size = node.weight.shape[1] // groups
        split = step("Reshape", [codes, writer.integers(f"{name}.groups", [-1, groups, size])], "rows")
        split = step("Transpose", [split], "batch", perm=[1, 0, 2])
        acc = writer.fresh(f"{name}.sum")
        writer.node("MatMulInteger", [split, weight, zero_x, zero], acc, name=name)
        scales = writer.constant(f"{name}.weight_scale", np.ascontiguousarray(scale.T[:, None, :]))
        parts = step("Mul", [step("Cast", [acc], "float", to=1), scales], "parts")
        total = step("ReduceSum", [parts, writer.integers("first_axis", [0])], "total", keepdims=0)
        outer = writer.measured(x, f"{name}.outer", 0, len(writer.shapes[node.input]) - 1)
        features = writer.integers(f"{name}.features", [len(scale)])
        total = step("Reshape", [total, writer.joined(f"{name}.shape", [outer, features])], "whole")
        writer.node("Mul", [total, token], product, name=f"{name}.scaled")
    _biased(writer, node, product)


def _floats(writer: Writer, node: WeightOnlyLinear | DynamicLinear) -> str:
    """The input as float32."""
    if str(writer.dtypes[node.input]) == "torch.float32":
        return node.input
    cast = writer.fresh(f"{node.output}.input")
    return writer.node("Cast", [node.input], cast, name=cast, to=1)


def _weight(writer: Writer, node: DynamicLinear) -> tuple[str, str]:
    """Codes `(in, out)`, or `(groups, in / groups, out)`, and their zero point."""
    codes, zero = numpy_of(node.weight), np.array(0, np.int8)
    groups = node.weight_scale.shape[1]
    if numerics.pair_bound(node.weight, 255) > numerics.INT16_MAX:
        codes, zero = (codes.astype(np.int16) + 128).astype(np.uint8), np.array(128, np.uint8)
    stored = np.ascontiguousarray(codes.T if groups == 1 else codes.reshape(len(codes), groups, -1).transpose(1, 2, 0))
    return packed(writer, f"{node.output}.weight", stored), writer.constant(f"{node.output}.weight_zero_point", zero)


def _biased(writer: Writer, node: WeightOnlyLinear | DynamicLinear, product: str) -> None:
    if node.bias is not None:
        bias = writer.constant(f"{node.output}.bias", numpy_of(node.bias))
        writer.node("Add", [product, bias], node.output, name=f"{node.output}.biased")
