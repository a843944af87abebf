"""The nodes of an integer program, as frozen values.

An edge is a named tensor of codes with one scale and zero point. A value is a named float32 tensor. Each node reads and
writes edges unless it says otherwise. `low` and `high` are the codes between which the result is clamped: a fused ReLU
or clip is nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from truequant.schemes import ArithmeticRule


@dataclass(frozen=True, slots=True)
class Edge:
    """Codes `qmin … qmax` of values `(q - zero_point) * scale`; `scale` is a float32 number. Signed where `qmin < 0`."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int

    @property
    def signed(self) -> bool:
        return self.qmin < 0

    @property
    def wide(self) -> bool:
        """Whether its codes take more than 8 bits."""
        return self.qmin < -128 or self.qmax > (127 if self.signed else 255)


@dataclass(frozen=True, slots=True)
class Quantize:
    """`q = clamp(rint(x / s) + z, qmin, qmax)` of the value `input`; NaN gives code 0."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Dequantize:
    """The value `(q - z) * s` of the edge `input`."""

    input: str
    output: str


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """`acc = sum((xq - zx) * wq) + bq`, then requantized; padding is real 0, the code `zx`.

    weight: int8 `(out, in / groups, *kernel)`; weight_scale: float32 `(out,)` or `(1,)`; bias: int32 `(out,)`.
    padding: `(begin, end)` for each spatial axis. Where `output` is a value: `float32(acc) * float32(sx * sw)`.
    """

    input: str
    output: str
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    low: int
    high: int


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A conv without space: the last axis of `input` against `weight` `(out, in)` int8; everything else as in `Conv`."""

    input: str
    output: str
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class MatMul:
    """`acc = sum((aq - za) * (bq - zb))` over the last axis of `left` and the last but one of `right`, axes before them
    broadcast, then requantized by `M = float32(float32(sa * sb) / sy)`.
    """

    left: str
    right: str
    output: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Add:
    """The sum of two edges by a named rule; `left` is the operand that the rule calls a."""

    left: str
    right: str
    output: str
    rule: ArithmeticRule
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Mul:
    """The product of two edges by a named rule."""

    left: str
    right: str
    output: str
    rule: ArithmeticRule
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Sub:
    """The difference `left - right` of two edges: dequantized, subtracted in float32, quantized."""

    left: str
    right: str
    output: str
    low: int
    high: int


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """`entries[input]`: rows of codes `(rows, *row)`, in the storage of the output, by the integers of the value `input`."""

    input: str
    output: str
    entries: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """`entries[q - qmin]` for each code of `input`: `(levels,)`, int16, or int32 where codes of the output do not fit it.
    `function` names what was tabulated.
    """

    input: str
    output: str
    entries: Tensor
    function: str


@dataclass(frozen=True, slots=True)
class GlobalAverage:
    """Mean over `axes` (negative, counted from the end), an integer sum of `xq - zx`, then
    `clamp(rint(float32(acc) * float32(sx / float32(sy * n))) + zy)`. The axes stay with length 1 where `keepdim`.
    """

    input: str
    output: str
    axes: tuple[int, ...]
    keepdim: bool
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class AveragePool:
    """Mean of those elements of each window that lie inside the input, by a named rule; padding is not counted."""

    input: str
    output: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool
    rule: ArithmeticRule
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Largest code of each window; scale and zero point are kept, padding never wins."""

    input: str
    output: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool


@dataclass(frozen=True, slots=True)
class Clamp:
    """`clamp(q, low, high)`; scale and zero point are kept."""

    input: str
    output: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Reshape:
    """`shape`: 0 keeps that axis of the input, one -1 is what remains (ONNX's rule)."""

    input: str
    output: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transpose:
    """Axis i of the output is axis `permutation[i]` of the input."""

    input: str
    output: str
    permutation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """`input[begin:end:step]` along `axis`; `end` None is the axis' end."""

    input: str
    output: str
    axis: int
    begin: int
    end: int | None
    step: int


@dataclass(frozen=True, slots=True)
class Take:
    """`input[indices]` along `axis`, indices not negative."""

    input: str
    output: str
    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Upsample:
    """Each code repeated `factors` times along the last axes: nearest neighbour."""

    input: str
    output: str
    factors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DepthToSpace:
    """`(N, C * prod(block), *space)` to `(N, C, *(space * block))`: channels move into space, the first block axis slowest."""

    input: str
    output: str
    block: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pad:
    """Real zeros, the code `z`, before and after each of the last axes: `(begin, end)` of the last axis comes last."""

    input: str
    output: str
    padding: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """Edges of one scale and zero point, joined along `axis`."""

    inputs: tuple[str, ...]
    output: str
    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class Island:
    """A float op between quantized edges, on values: `torch.ops.aten.{op}(*arguments, **options)` (see `islands`).

    arguments: the JSON text of each positional argument; options: of each `[keyword, value]`.
    part: which of several results.
    """

    inputs: tuple[str, ...]
    output: str
    op: str
    arguments: tuple[str, ...]
    options: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    part: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class WeightOnlyLinear:
    """`x @ (codes * scale).T + bias` in float32: `input` and `output` are values, only the weight is integers.

    weight: int8 `(out, in)`; weight_scale: float32 `(out, groups)`, one for each run of `in / groups` codes of a row.
    """

    input: str
    output: str
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class DynamicLinear:
    """A linear layer on tokens quantized at run time: `input` and `output` are values, the sums are integers.

        s = clamp(max |x| / qmax, 2^-64, 2^64) over the last axis,  q = clamp(rint(x / s), -qmax, qmax)
        y = float32(sum q * w) * sw * s + bias;  of several groups: float32(sum over groups of their sums * sw) * s + bias

    Fields as in `WeightOnlyLinear`.
    """

    input: str
    output: str
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    qmax: int


NODE_TYPES = (
    Quantize, Dequantize, Conv, Linear, MatMul, Add, Sub, Mul, Lookup, Table, GlobalAverage, AveragePool, MaxPool, Clamp,
    Reshape, Transpose, Slice, Take, Upsample, DepthToSpace, Pad, Concat, Island, WeightOnlyLinear,
    DynamicLinear,
)  # fmt: skip
Node = (
    Quantize | Dequantize | Conv | Linear | MatMul | Add | Sub | Mul | Lookup | Table | GlobalAverage | AveragePool | MaxPool
    | Clamp | Reshape | Transpose | Slice | Take | Upsample | DepthToSpace | Pad | Concat | Island | WeightOnlyLinear
    | DynamicLinear
)  # fmt: skip


FLOAT_LINEARS = (WeightOnlyLinear, DynamicLinear)
"""Layers of integer weights that read and write values."""
WEIGHTED = (Conv, Linear, *FLOAT_LINEARS)
"""Layers that hold a weight of integers."""
FLOATING = (Island, *FLOAT_LINEARS)
"""Nodes that read and write values, whose sums a runtime orders in its own way."""
MOVING = (Reshape, Transpose, Slice, Take, Upsample, DepthToSpace, Concat)
"""Nodes that move codes or values alike."""


def inputs_of(node: Node) -> tuple[str, ...]:
    """Names that a node reads, in order."""
    match node:
        case MatMul() | Add() | Sub() | Mul():
            return (node.left, node.right)
        case Concat() | Island():
            return node.inputs
        case _:
            return (node.input,)
