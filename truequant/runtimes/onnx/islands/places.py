"""Indexing, scattering, sorting and windows as float islands in ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.runtimes.onnx.islands.arguments import Arguments
from truequant.runtimes.onnx.islands.steps import IslandWriter, Steps
from truequant.runtimes.onnx.writer import Writer


def index(writer: Writer, node: Island, a: Arguments) -> None:
    """`x[:, i, j]` by tensors that broadcast: GatherND on their coordinates, the indexed axes first.

    As in torch, the axes of the indices stand where the indexed axes stood if these are neighbours, else in front.
    """
    step, source = Steps(writer, node), a.tensor("0")
    indices: list[Any] = list(a["1"])
    taken = [axis for axis, i in enumerate(indices) if i is not None]
    if any(writer.dtypes.get(indices[axis]) == torch.bool for axis in taken):
        raise ExportError(
            f"'{node.output}': indexes by a mask, as many elements as it is true",
            expected="integers", fix="torch.where(mask, x, 0) keeps the shape",
        )  # fmt: skip
    if len(taken) == 1:
        step("Gather", [source, indices[taken[0]]], axis=taken[0])
        return
    rank = len(writer.shapes[source])
    order = [*taken, *(axis for axis in range(rank) if axis not in taken)]
    if order != list(range(rank)):
        source = step("Transpose", [source], "turned", perm=order)
    zero, last = writer.constant(f"{node.output}.zero", np.int64(0)), writer.integers(f"{node.output}.last", [-1])
    whole = [_int64(writer, step, indices[axis]) for axis in taken]
    nothing = [step("Mul", [i, zero], "nothing") for i in whole]
    columns = []
    for position, column in enumerate(whole):
        for other, none in enumerate(nothing):
            column = step("Add", [column, none], "broadcast") if other != position else column
        columns.append(step("Unsqueeze", [column, last], "column"))
    places = step("Concat", columns, "places", axis=-1)
    neighbours = taken == list(range(taken[0], taken[0] + len(taken)))
    if not neighbours or taken[0] == 0:
        step("GatherND", [source, places])
        return
    found = step("GatherND", [source, places], "found")
    new = max(len(writer.shapes[indices[axis]]) for axis in taken)
    before = list(range(new, new + taken[0]))
    step("Transpose", [found], perm=[*before, *range(new), *range(new + taken[0], new + rank - len(taken))])


def _int64(writer: Writer, step: Steps, name: str) -> str:
    if writer.dtypes.get(name) == torch.int64:
        return name
    return step("Cast", [name], "whole", to=writer.element(torch.int64))


def select(writer: Writer, node: Island, a: Arguments) -> None:
    Steps(writer, node)("Gather", [a.tensor("0"), a.tensor("2")], axis=int(a["1"]))


def slice_scatter(writer: Writer, node: Island, a: Arguments) -> None:
    """A part of a tensor overwritten, `x[:, start:end:step] = y`: from `start` on, as far as `y` goes."""
    step = Steps(writer, node)

    def number(value: int, part: str) -> str:
        return writer.constant(f"{node.output}.{part}", np.int64(value))

    axis = int(a.get("2", 0)) % len(writer.shapes[a.tensor("0")])
    first = a.size(a.get("3") or 0, "first")
    one = writer.integers(f"{node.output}.axis", [0])
    count = step("Squeeze", [a.size(a.measured("1", axis), "count"), one], "count")
    steps = step("Range", [number(0, "zero"), count, number(1, "one")], "steps")
    places = step("Add", [step("Mul", [steps, number(a.get("5", 1), "step")], "strides"), first], "places")
    _scatter_along(step, a, places, axis)


def select_scatter(writer: Writer, node: Island, a: Arguments) -> None:
    """One place of an axis overwritten, `x[:, 0] = y`."""
    step = Steps(writer, node)
    axis = int(a["2"]) % len(writer.shapes[a.tensor("0")])
    source = step("Unsqueeze", [a.tensor("1"), writer.integers(f"{node.output}.axis", [axis])], "column")
    _scatter_along(step, a, a.size(a["3"], "place"), axis, source)


def _scatter_along(step: Steps, a: Arguments, places: str, axis: int, source: str | None = None) -> None:
    """`source`, by default the second argument, at `places` of an axis of the first."""
    writer, rank = step.writer, len(step.writer.shapes[a.tensor("0")])
    source = a.operands("1", dtype=a.dtype())[0] if source is None else source
    column = writer.integers(f"{step.node.output}.column", [-1, *[1] * (rank - axis - 1)])
    whole = step("Expand", [step("Reshape", [places, column], "along"), step("Shape", [source], "shape")], "whole")
    step("ScatterElements", [a.tensor("0"), whole, source], axis=axis)


def gather(writer: Writer, node: Island, a: Arguments) -> None:
    """torch lets the index be shorter than the source on the other axes, and so does ONNX."""
    Steps(writer, node)("GatherElements", [a.tensor("0"), a.tensor("2")], axis=int(a["1"]))


def one_hot(writer: Writer, node: Island, a: Arguments) -> None:
    step, classes = Steps(writer, node), int(a.get("1", -1))
    if classes < 1:
        raise ExportError(f"'{node.output}': as many classes as the data has", expected="num_classes=…")
    wide = step("Unsqueeze", [_int64(writer, step, a["0"]), writer.integers(f"{node.output}.last", [-1])], "wide")
    equal = step("Equal", [wide, writer.integers(f"{node.output}.classes", list(range(classes)))], "equal")
    step("Cast", [equal], to=writer.element(torch.int64))


# -- scattering --------------------------------------------------------------------------------------------------------
_REDUCTIONS = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}


def scatter(reduction: str = "none") -> IslandWriter:
    """`scatter` and its kin: elements of a source, or one number, put at places along an axis."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step, places = Steps(writer, node), a.tensor("2")
        target, source = a.operands("0", "3", dtype=writer.dtypes[node.output])
        reduce = a.get("reduce")
        kind = reduction if reduce is None else {**_REDUCTIONS, "add": "add", "multiply": "mul"}.get(reduce)
        if kind is None or not a.get("include_self", True):
            raise ExportError(
                f"'{node.output}': {node.op} of this reduction has no ONNX form",
                got=f"reduce={reduce!r}, include_self={a.get('include_self', True)}",
                expected="sum, prod, amax or amin, include_self=True",
            )
        if not isinstance(a["3"], str):
            source = step("Expand", [source, step("Shape", [places], "shape")], "source")
        elif writer.shapes[source if source in writer.shapes else a["3"]] != writer.shapes[places]:
            rank = len(writer.shapes[places])
            begin = writer.integers(f"{node.output}.begin", [0] * rank)
            source = step("Slice", [source, begin, step("Shape", [places], "shape")], "source")
        places = _int64(writer, step, places)
        step("ScatterElements", [target, places, source], axis=int(a["1"]), reduction=kind)

    return build


def index_add(reduction: str) -> IslandWriter:
    """Slices of a source added to (or put into) slices of the input, by the places of an axis."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step, dtype = Steps(writer, node), writer.dtypes[node.output]
        target, source = a.operands("0", "3", dtype=dtype)
        if a.get("alpha", 1) != 1:
            alpha = writer.constant(f"{node.output}.alpha", np.array(a["alpha"], writer.numpy(dtype)))
            source = step("Mul", [source, alpha], "scaled")
        rank = len(writer.shapes[a.tensor("0")])
        axis = int(a["1"]) % rank
        column = writer.integers(f"{node.output}.column", [-1 if i == axis else 1 for i in range(rank)])
        places = step("Reshape", [_int64(writer, step, a.tensor("2")), column], "column")
        places = step("Expand", [places, step("Shape", [source], "shape")], "places")
        step("ScatterElements", [target, places, source], axis=axis, reduction=reduction)

    return build


# -- order -------------------------------------------------------------------------------------------------------------
def largest(op: str) -> IslandWriter:
    """`max(dim)` or `min(dim)`: values, or places."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        keep = int(bool(a.get("2", False)))
        if node.part == 1:
            Steps(writer, node)("Arg" + op, [a["0"]], axis=int(a["1"]), keepdims=keep)
        else:
            axes = writer.integers(f"{node.output}.axes", [int(a["1"])])
            Steps(writer, node)("Reduce" + op, [a["0"], axes], keepdims=keep)

    return build


def extreme_place(op: str) -> IslandWriter:
    """`argmax` or `argmin`: the first place along an axis, or of all elements in a row."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step, source, axis = Steps(writer, node), a["0"], a.get("1")
        if writer.dtypes.get(source) == torch.int64:  # ArgMax knows no int64
            source = step("Cast", [source], "number", to=writer.element(torch.float64))
        if axis is None:
            source = step("Reshape", [source, writer.integers(f"{node.output}.flat", [-1])], "row")
            step(op, [source], axis=0, keepdims=0)
            return
        step(op, [source], axis=int(axis), keepdims=int(bool(a.get("2", False))))

    return build


def ordered(kind: str) -> IslandWriter:
    """`topk`, `sort` and `argsort` as TopK: values, or places (part 1)."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step, source = Steps(writer, node), a["0"]
        rank = len(writer.shapes[source])
        if kind == "topk":
            axis, count, largest = int(a.get("2", -1)), a.size(a["1"], "k"), bool(a.get("3", True))
        else:
            axis, largest = int(a.get("dim", -1)), bool(a.get("descending", False))
            count = writer.measured(source, f"{node.output}.k", axis % rank, axis % rank + 1)
        if writer.dtypes.get(source, torch.float32) not in (torch.float32, torch.float64, torch.int64, torch.int32):
            source = step("Cast", [source], "number", to=writer.element(torch.int64))
        places = kind == "argsort" or node.part == 1
        made = writer.fresh(f"{node.output}.sorted")
        names = [writer.fresh(f"{node.output}.values"), made] if places else [made, writer.fresh(f"{node.output}.places")]
        writer.several("TopK", [source, count], names, name=names[0], axis=axis, largest=int(largest), sorted=1)
        if not places and writer.dtypes[node.output] not in (torch.float32, torch.float64, torch.int64, torch.int32):
            step("Cast", [made], to=writer.element(writer.dtypes[node.output]))
        else:
            step("Identity", [made])

    return build


# -- windows -----------------------------------------------------------------------------------------------------------
def adaptive_max_pool(writer: Writer, node: Island, a: Arguments) -> None:
    """Windows of unequal size: the places of each, its last one repeated up to the longest window, and their maximum."""
    step, x = Steps(writer, node), a["0"]
    before, after = writer.shapes[x], writer.shapes[node.output]
    if node.part == 1:
        raise ExportError(f"'{node.output}': places of an adaptive pooling", expected="return_indices=False")
    n = int(node.op.split("pool")[1][0])
    axes = list(range(len(before) - n, len(before)))
    for axis in axes:
        size, count = before[axis], after[axis]
        if size is None or count is None:
            raise ExportError(f"'{node.output}': an adaptive pooling of a dynamic size", got=str(before))
        windows = [((i * size) // count, -((-(i + 1) * size) // count)) for i in range(count)]
        longest = max(end - begin for begin, end in windows)
        places = np.array([[min(begin + k, end - 1) for k in range(longest)] for begin, end in windows], np.int64)
        taken = step("Gather", [x, writer.constant(f"{node.output}.windows{axis}", places)], "windows", axis=axis)
        inner = writer.integers(f"{node.output}.inner{axis}", [axis + 1])
        x = step("ReduceMax", [taken, inner], "" if axis == axes[-1] else "highest", keepdims=0)


def unfold(writer: Writer, node: Island, a: Arguments) -> None:
    """`x.unfold(axis, size, step)`: windows of one axis, their elements on a new last axis."""
    step, x = Steps(writer, node), a["0"]
    rank = len(writer.shapes[x])
    axis, length = int(a["1"]) % rank, writer.shapes[x][int(a["1"]) % rank]
    if length is None:
        raise ExportError(f"'{node.output}': windows over a dynamic axis", expected="a fixed size")
    starts = np.arange(0, length - int(a["2"]) + 1, int(a["3"]), dtype=np.int64)
    places = writer.constant(f"{node.output}.places", starts[:, None] + np.arange(int(a["2"]), dtype=np.int64))
    windows = step("Gather", [x, places], "windows", axis=axis)
    step("Transpose", [windows], perm=[*(i for i in range(rank + 1) if i != axis + 1), axis + 1])


def im2col(writer: Writer, node: Island, a: Arguments) -> None:
    """`F.unfold`: the elements of each window as a column."""
    step, x = Steps(writer, node), a["0"]
    kernel, dilation, padding, stride = (a.sizes(str(i), 2, d) for i, d in ((1, 1), (2, 1), (3, 0), (4, 1)))
    _, channels, *space = writer.shapes[x]
    if None in space or channels is None:
        raise ExportError(f"'{node.output}': windows over dynamic axes", got=str(writer.shapes[x]), expected="fixed sizes")
    if any(padding):
        x = step("Pad", [x, writer.integers(f"{node.output}.pads", [0, 0, *padding] * 2)], "padded")
    counts = []
    for i, (axis, size) in enumerate(zip((2, 4), space, strict=True)):
        count = (int(size or 0) + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        places = np.arange(kernel[i])[:, None] * dilation[i] + np.arange(count) * stride[i]
        x = step("Gather", [x, writer.constant(f"{node.output}.places{i}", places.astype(np.int64))], "windows", axis=axis)
        counts.append(count)
    x = step("Transpose", [x], "turned", perm=[0, 1, 2, 4, 3, 5])
    sizes = [0, channels * kernel[0] * kernel[1], counts[0] * counts[1]]
    step("Reshape", [x, writer.integers(f"{node.output}.shape", sizes)])


def col2im(writer: Writer, node: Island, a: Arguments) -> None:
    """`F.fold`: columns added up where they came from."""
    size, kernel = (writer.integers(f"{node.output}.{k}", a.sizes(i, 2, 1)) for k, i in (("image", "1"), ("block", "2")))
    dilation, padding, stride = (a.sizes(str(i), 2, d) for i, d in ((3, 1), (4, 0), (5, 1)))
    pads = [*padding, *padding]
    Steps(writer, node)("Col2Im", [a["0"], size, kernel], dilations=dilation, pads=pads, strides=stride)
