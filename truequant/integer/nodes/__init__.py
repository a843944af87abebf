"""The nodes of an integer program, as frozen values, by family.

An edge is a named tensor of codes with one scale and zero point. A value is a named float32 tensor. A new kind of node is a
class in the file of its family and a line in each list below.
"""

from truequant.integer.edge import Edge
from truequant.integer.nodes.attention import Attend, Softmax
from truequant.integer.nodes.base import Node, Shape, Weighted
from truequant.integer.nodes.elementwise import Add, Clamp, Constant, Dequantize, Lookup, Mul, Quantize, Sub, Table
from truequant.integer.nodes.float_linears import DynamicLinear, FloatLinear, WeightOnlyLinear
from truequant.integer.nodes.islands import Island
from truequant.integer.nodes.layers import Conv, Linear
from truequant.integer.nodes.movement import (
    Concat,
    DepthToSpace,
    Moving,
    Pad,
    PadRepeated,
    Reshape,
    Slice,
    Take,
    Transpose,
    Upsample,
)
from truequant.integer.nodes.norms import Normalize
from truequant.integer.nodes.pointwise import Pointwise
from truequant.integer.nodes.pooling import AveragePool, GlobalAverage, MaxPool
from truequant.integer.nodes.products import MatMul

NODE_TYPES: tuple[type[Node], ...] = (
    Quantize, Dequantize, Conv, Linear, MatMul, Add, Sub, Mul, Lookup, Table, GlobalAverage, AveragePool, MaxPool, Clamp,
    Reshape, Transpose, Slice, Take, Upsample, DepthToSpace, Pad, PadRepeated, Concat, Island, WeightOnlyLinear,
    DynamicLinear, Normalize, Softmax, Attend, Constant, Pointwise,
)  # fmt: skip
"""Every kind that a program may hold, and a file may name."""
FLOATING = tuple(kind for kind in NODE_TYPES if (kind.reading, kind.writing) == ("values", "values") and not kind.rounds_once)
"""Nodes that read and write values, whose sums a runtime orders in its own way."""

__all__ = [
    "FLOATING", "NODE_TYPES", "Add", "Attend", "AveragePool", "Clamp", "Concat", "Constant", "Conv", "DepthToSpace",
    "Dequantize", "DynamicLinear", "Edge", "FloatLinear", "GlobalAverage", "Island", "Linear", "Lookup", "MatMul", "MaxPool",
    "Moving", "Mul", "Node", "Normalize", "Pad", "PadRepeated", "Pointwise", "Quantize", "Reshape", "Shape", "Slice",
    "Softmax", "Sub", "Table", "Take", "Transpose", "Upsample", "WeightOnlyLinear", "Weighted",
]  # fmt: skip
