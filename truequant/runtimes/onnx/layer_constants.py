"""Constants of integer layers: weight codes with scale and zero point, int32 biases, in the exact form for the target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer.nodes import Conv, Linear
from truequant.runtimes.onnx.writer import Writer, numpy_of
from truequant.runtimes.packages import onnx
from truequant.runtimes.saturation import saturates

_PACKED_FROM = 512
"""Elements from which two codes a byte save more than the Cast node that unpacks them costs."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Names of constants. codes: int8 or uint8, cast from int4 where they fit; scale, zero_point: one for each channel."""

    codes: str
    scale: str
    zero_point: str


def weight_of(writer: Writer, node: Conv | Linear, *, transposed: bool = False, scalar_zero: bool = False) -> Weight:
    """The weight of a layer. transposed: `(in, out)`; scalar_zero: one zero point for all channels."""
    codes, zero = numpy_of(node.weight), np.array(0, np.int8)
    if saturates(writer.program, node):
        if writer.edge(node.input).signed:
            raise _saturation(writer, node)
        codes, zero = (codes.astype(np.int16) + 128).astype(np.uint8), np.array(128, np.uint8)
    name, count = node.output, len(codes)
    stored = np.ascontiguousarray(codes.T) if transposed else codes
    return Weight(
        packed(writer, f"{name}.weight", stored),
        writer.constant(f"{name}.weight_scale", scales(node)),
        writer.constant(f"{name}.weight_zero_point", zero if scalar_zero else np.full(count, zero, zero.dtype)),
    )


def scales(node: Conv | Linear) -> Any:
    """float32 `(out,)`."""
    found = numpy_of(node.weight_scale)
    return found if len(found) > 1 else np.repeat(found, len(node.weight))


def packs(codes: Any) -> bool:
    """Whether weights lie in the file two codes a byte."""
    return math.prod(codes.shape) >= _PACKED_FROM and int(codes.min()) >= -8 and int(codes.max()) <= 7


def packed(writer: Writer, name: str, codes: Any) -> str:
    """A constant, or two codes a byte and a Cast: constant folding undoes it when the file is loaded, so that kernels fuse."""
    if codes.dtype != np.int8 or not packs(codes):
        return writer.constant(name, codes)
    int4 = onnx().helper.tensor_dtype_to_np_dtype(onnx().TensorProto.INT4)
    packed = writer.constant(f"{name}.packed", codes.astype(int4))
    if packed not in writer.unpacked:  # a layer called twice has one weight
        output = writer.fresh(name)
        writer.unpacked[packed] = writer.node("Cast", [packed], output, name=output, to=int(onnx().TensorProto.INT8))
    return writer.unpacked[packed]


def _saturation(writer: Writer, node: Conv | Linear) -> ExportError:
    edge = writer.edge(node.input)
    return ExportError(
        f"'{node.output}' may saturate on CPUs without VNNI, and signed activations leave it no exact form",
        got=f"codes {edge.qmin} … {edge.qmax} times {int(node.weight.min())} … {int(node.weight.max())}",
        expected="unsigned activations, or weights of at most 7 bits",
        fix="QConfig.preset('int8'), or activation=QuantScheme(uint8)",
    )
