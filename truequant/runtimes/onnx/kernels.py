"""What a runtime may make of each kind of node: one row a kind, which the writer, the census and `lint` read."""

from __future__ import annotations

from dataclasses import dataclass

from truequant.integer.nodes import (
    Add,
    Attend,
    AveragePool,
    Clamp,
    Concat,
    Constant,
    Conv,
    DepthToSpace,
    Dequantize,
    DynamicLinear,
    GlobalAverage,
    Island,
    Linear,
    Lookup,
    MatMul,
    MaxPool,
    Mul,
    Node,
    Normalize,
    Pad,
    PadRepeated,
    Pointwise,
    Quantize,
    Reshape,
    Slice,
    Softmax,
    Sub,
    Table,
    Take,
    Transpose,
    Upsample,
    WeightOnlyLinear,
)

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own integer kernels."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The ops and kernels of one kind of node.

    op: the op of ONNX that computes or moves it, on values where it computes. Empty where no single op does.
    integer, domain: the integer kernel that QOperator layout names, and that runtimes make of `op` in QDQ layout.
    sums: the integer kernel where a layer's sums leave the program as values.
    table: the op that looks its codes up.
    others: kernels that give the same codes, which an optimizer may choose instead.
    floats: float kernels that an optimizer may choose for a node on values.
    wide_as_values: 16-bit codes, for which runtimes have no such kernel, pass through `op` as float32 values.
    """

    op: str = ""
    integer: str = ""
    domain: str = ""
    sums: str = ""
    table: str = ""
    others: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    wide_as_values: bool = False

    @property
    def computes(self) -> bool:
        """Whether it computes new codes with an op of its own."""
        return bool(self.op and (self.integer or self.table))

    @property
    def exact(self) -> frozenset[str]:
        """Every kernel that computes its codes; empty where none is required."""
        return frozenset((self.integer, self.sums, self.table, *self.others)) - {""}


KERNELS: dict[type[Node], Kernels] = {
    Quantize: Kernels("QuantizeLinear"),
    Dequantize: Kernels("DequantizeLinear"),
    Conv: Kernels("Conv", "QLinearConv", sums="ConvInteger", wide_as_values=True),
    Linear: Kernels(
        "Gemm", "QGemm", MICROSOFT, "MatMulInteger", others=("QLinearMatMul", "MatMulIntegerToFloat"), wide_as_values=True
    ),
    MatMul: Kernels("MatMul", "QLinearMatMul", sums="MatMulInteger", others=("MatMulIntegerToFloat",), wide_as_values=True),
    Add: Kernels("Add", "QLinearAdd", MICROSOFT, table="GatherElements", wide_as_values=True),
    Sub: Kernels("Sub", table="GatherElements", wide_as_values=True),
    Mul: Kernels("Mul", "QLinearMul", MICROSOFT, table="GatherElements", wide_as_values=True),
    AveragePool: Kernels("AveragePool", "QLinearAveragePool", MICROSOFT, wide_as_values=True),
    GlobalAverage: Kernels("GlobalAveragePool", "QLinearGlobalAveragePool", MICROSOFT, wide_as_values=True),
    Normalize: Kernels(others=("QuantizeLinear",)),
    Table: Kernels(table="GatherElements", others=("QuantizeLinear",)),
    Lookup: Kernels(table="Gather"),
    MaxPool: Kernels("MaxPool", others=("MaxPool", "NhwcMaxPool"), wide_as_values=True),
    Pad: Kernels("Pad", wide_as_values=True),
    PadRepeated: Kernels("Pad", wide_as_values=True),
    Upsample: Kernels("Resize", wide_as_values=True),
    Clamp: Kernels("Clip"),
    Reshape: Kernels("Reshape"),
    Transpose: Kernels("Transpose"),
    Slice: Kernels("Slice"),
    Take: Kernels("Gather"),
    Concat: Kernels("Concat"),
    DepthToSpace: Kernels(),
    Constant: Kernels("Expand"),
    Island: Kernels(),
    Pointwise: Kernels(),
    WeightOnlyLinear: Kernels("MatMul", floats=("MatMulNBits",)),
    DynamicLinear: Kernels(sums="MatMulInteger"),
    Softmax: Kernels(table="GatherElements"),
    Attend: Kernels(sums="MatMulInteger", table="GatherElements"),
}
INTEGER = frozenset(
    name for row in KERNELS.values() if row.integer or row.sums for name in (row.integer, row.sums, *row.others) if name
)
"""Every kernel that sums or multiplies codes."""
COMPUTING = tuple(kind for kind, row in KERNELS.items() if row.computes)
"""Kinds of nodes that compute new codes with an op of their own."""


def kernels_of(node: Node) -> Kernels:
    """The row of a node."""
    return KERNELS[type(node)]
