"""Arithmetic, reductions, indexing and filling as float islands in ONNX."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.runtimes.onnx.islands.arguments import Arguments
from truequant.runtimes.onnx.islands.steps import IslandWriter, Steps
from truequant.runtimes.onnx.writer import Writer


def plain(op: str, **attributes: Any) -> IslandWriter:
    """One ONNX op on the tensors among the arguments."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        Steps(writer, node)(op, [v for v in a.values if isinstance(v, str)], **attributes)

    return build


def attributed(op: str, **names: str) -> IslandWriter:
    """One ONNX op on the first argument, other arguments as attributes."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        Steps(writer, node)(op, [a["0"]], "", **{k: float(a[name]) for k, name in names.items()})

    return build


def clamp(writer: Writer, node: Island, a: Arguments) -> None:
    names = {"relu6.default": (0.0, 6.0), "clamp_min.default": (a.get("1"), None), "clamp_max.default": (None, a.get("1"))}
    default = (-1.0, 1.0) if node.op == "hardtanh.default" else (None, None)
    low, high = names.get(node.op, (a.get("1", a.get("min", default[0])), a.get("2", a.get("max", default[1]))))
    step = Steps(writer, node)
    if writer.dtypes[node.output] != torch.float32 or any(isinstance(b, str) for b in (low, high)):
        dtype, x = writer.dtypes[node.output], a.operands("0", dtype=writer.dtypes[node.output])[0]
        bounds = [(op, b) for op, b in (("Max", low), ("Min", high)) if b is not None]
        for position, (op, bound) in enumerate(bounds):
            other = Arguments(writer, node, a.values, {op: bound}).operands(op, dtype=dtype)[0]
            x = step(op, [x, other], "" if position == len(bounds) - 1 else "raised")
        return
    step("Clip", [a["0"], *("" if b is None else step.number(b, k) for k, b in (("low", low), ("high", high)))])


def reduce(op: str) -> IslandWriter:
    def build(writer: Writer, node: Island, a: Arguments) -> None:
        rank = len(writer.shapes[a["0"]])
        axes = a.get("1")
        axes = list(range(rank)) if axes in (None, []) else [axes] if isinstance(axes, int) else axes
        keep = int(bool(a.get("2", a.get("keepdim", False))))
        x = a.operands("0", dtype=writer.dtypes[node.output])[0]  # torch sums booleans and small integers as int64
        Steps(writer, node)(op, [x, writer.integers(f"{node.output}.axes", axes)], keepdims=keep)

    return build


def norm(writer: Writer, node: Island, a: Arguments) -> None:
    """The Euclidean norm along axes."""
    if float(a.get("1", 2)) != 2.0:
        raise ExportError(f"'{node.output}': a norm of order {a['1']}", expected="order 2")
    axes = [a["2"]] if isinstance(a["2"], int) else list(a["2"])
    keep = int(bool(a.get("3", False)))
    Steps(writer, node)("ReduceL2", [a["0"], writer.integers(f"{node.output}.axes", axes)], keepdims=keep)


def gelu(writer: Writer, node: Island, a: Arguments) -> None:
    Steps(writer, node)("Gelu", [a["0"]], approximate=a.get("approximate", "none"))


def silu(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    step("Mul", [a["0"], step("Sigmoid", [a["0"]], "gate")])


def log_sigmoid(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    step("Neg", [step("Softplus", [step("Neg", [a["0"]], "turned")], "softplus")])


def rsqrt(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    step("Reciprocal", [step("Sqrt", [a["0"]], "root")])


def prelu(writer: Writer, node: Island, a: Arguments) -> None:
    step, rank = Steps(writer, node), len(writer.shapes[a["0"]])
    wide = writer.integers(f"{node.output}.wide", [-1, *(1,) * (rank - 2)])
    step("PRelu", [a["0"], step("Reshape", [a.tensor("1"), wide], "slopes")])


def cast(writer: Writer, node: Island, a: Arguments) -> None:
    Steps(writer, node)("Cast", [a["0"]], to=writer.element(a.dtype()))


def where(writer: Writer, node: Island, a: Arguments) -> None:
    x, y = a.operands("1", "2", dtype=writer.dtypes[node.output])
    Steps(writer, node)("Where", [a.tensor("0"), x, y])


def masked_fill(writer: Writer, node: Island, a: Arguments) -> None:
    fill, x = a.operands("2", "0", dtype=writer.dtypes[node.output])
    Steps(writer, node)("Where", [a.tensor("1"), fill, x])


def cumsum(writer: Writer, node: Island, a: Arguments) -> None:
    source, result = a["0"], writer.dtypes[node.output]
    if writer.dtypes.get(source) != result:  # torch sums all integers as int64
        source = Steps(writer, node)("Cast", [source], "number", to=writer.element(result))
    Steps(writer, node)("CumSum", [source, writer.constant(f"{node.output}.axis", np.int64(a["1"]))])


def einsum(writer: Writer, node: Island, a: Arguments) -> None:
    Steps(writer, node)("Einsum", [v for v in a["1"] if isinstance(v, str)], equation=a["0"].replace(" ", ""))


def expand(writer: Writer, node: Island, a: Arguments) -> None:
    """-1 keeps a size, which is what Expand makes of 1."""
    sizes = [1 if isinstance(n, int) and n == -1 else n for n in a["1"]]
    Steps(writer, node)("Expand", [a.tensor("0"), a.joined(sizes)])


def expand_as(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    step("Expand", [a.tensor("0"), step("Shape", [a.tensor("1")], "shape")])


def fill(writer: Writer, node: Island, a: Arguments) -> None:
    """One number in the shape of a tensor, and of its dtype."""
    step = Steps(writer, node)
    (number,) = a.operands("1", dtype=writer.dtypes[node.output])
    step("Expand", [number, step("Shape", [a.tensor("0")], "shape")])


def filled(value: float) -> IslandWriter:
    """`zeros` and its kin: a number in a shape."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        fill = a["1"] if node.op.startswith("full") else value
        number = writer.constant(f"{node.output}.fill", np.array(fill, writer.numpy(writer.dtypes[node.output])))
        Steps(writer, node)("Expand", [number, a.shape("0")])

    return build


def same_shape(value: float) -> IslandWriter:
    """`zeros_like` and its kin: a number in the shape of the argument."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step = Steps(writer, node)
        fill = a["1"] if node.op.startswith("full") else value
        number = writer.constant(f"{node.output}.fill", np.array(fill, writer.numpy(writer.dtypes[node.output])))
        step("Expand", [number, step("Shape", [a["0"]], "shape")])

    return build


def pad(writer: Writer, node: Island, a: Arguments) -> None:
    mode, flat = a.get("mode", "constant"), a["1"]
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    rank = len(writer.shapes[a.tensor("0")])
    begins, ends = [0] * rank, [0] * rank
    for i in range(0, len(flat), 2):
        begins[rank - 1 - i // 2], ends[rank - 1 - i // 2] = flat[i], flat[i + 1]
    pads = writer.integers(f"{node.output}.pads", begins + ends)
    fill = np.array(a.get("value") or 0, writer.numpy(writer.dtypes[node.output]))
    inputs = [a.tensor("0"), pads] + ([writer.constant(f"{node.output}.fill", fill)] if mode == "constant" else [])
    Steps(writer, node)("Pad", inputs, mode=modes[mode])


def arange(writer: Writer, node: Island, a: Arguments) -> None:
    """Whole numbers from a start to an end, which may be a size."""
    step = Steps(writer, node)
    ends = [0, a["0"]] if node.op == "arange.default" else [a["0"], a["1"]]
    scalars = []
    for part, end in zip(("begin", "end"), ends, strict=True):
        vector = a.joined([end])
        scalars.append(step("Squeeze", [vector, writer.integers(f"{node.output}.first", [0])], part))
    step("Range", [*scalars, writer.constant(f"{node.output}.step", np.int64(1))])


def square(writer: Writer, node: Island, a: Arguments) -> None:
    Steps(writer, node)("Mul", [a["0"], a["0"]])


def difference(writer: Writer, node: Island, a: Arguments) -> None:
    """Of neighbours along an axis."""
    step, rank = Steps(writer, node), len(writer.shapes[a.tensor("0")])
    if a.get("1", 1) != 1:
        raise ExportError(f"'{node.output}': a difference of a higher order", expected="n=1")
    axis = int(a.get("2", -1)) % rank
    parts = [v for v in (a.get("prepend"), a.tensor("0"), a.get("append")) if v is not None]
    whole = step("Concat", parts, "whole", axis=axis) if len(parts) > 1 else parts[0]
    axes = writer.integers(f"{node.output}.axis", [axis])
    one, zero, end = (writer.integers(f"{node.output}.{k}", [v]) for k, v in (("one", 1), ("zero", 0), ("end", 2**63 - 1)))
    minus = writer.integers(f"{node.output}.minus", [-1])
    later = step("Slice", [whole, one, end, axes], "later")
    step("Sub", [later, step("Slice", [whole, zero, minus, axes], "earlier")])


def repeat(writer: Writer, node: Island, a: Arguments) -> None:
    step, rank = Steps(writer, node), len(writer.shapes[a.tensor("0")])
    wide, more = a.tensor("0"), len(a["1"]) - rank
    if more:
        wide = step("Unsqueeze", [wide, writer.integers(f"{node.output}.axes", list(range(more)))], "wide")
    step("Tile", [wide, a.shape("1")])


def triangle(upper: int) -> IslandWriter:
    def build(writer: Writer, node: Island, a: Arguments) -> None:
        diagonal = writer.constant(f"{node.output}.diagonal", np.int64(a.get("1", 0)))
        Steps(writer, node)("Trilu", [a.tensor("0"), diagonal], upper=upper)

    return build


def glu(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    axis = int(a.get("1", -1))
    size = writer.shapes[a["0"]][axis]
    if size is None:
        raise ExportError(f"'{node.output}': a gate over a dynamic axis")
    axes = writer.integers(f"{node.output}.axes", [axis])
    ends = [writer.integers(f"{node.output}.end{i}", [v]) for i, v in enumerate((0, size // 2, size))]
    halves = [step("Slice", [a["0"], b, e, axes], "half") for b, e in itertools.pairwise(ends)]
    step("Mul", [halves[0], step("Sigmoid", [halves[1]], "gate")])


def spread(root: bool) -> IslandWriter:
    """Variance, or its root, over axes."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step, x = Steps(writer, node), a["0"]
        axes = a.get("dim") or list(range(len(writer.shapes[x])))
        correction = a.get("correction", 1)
        if "unbiased" in a.names():
            correction = int(bool(a["unbiased"]))
        count = math.prod(int(writer.shapes[x][axis] or 0) for axis in axes)
        names = writer.integers(f"{node.output}.axes", axes)
        keep = int(bool(a.get("keepdim", False)))
        centred = step("Sub", [x, step("ReduceMean", [x, names], "mean", keepdims=1)], "centred")
        total = step("ReduceSum", [step("Mul", [centred, centred], "squares"), names], "sum", keepdims=keep)
        divisor = step.number(max(0, count - (1 if correction is None else correction)))
        variance = step("Div", [total, divisor], "variance" if root else "")
        if root:
            step("Sqrt", [variance])

    return build
