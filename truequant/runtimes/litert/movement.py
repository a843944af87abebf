"""Nodes that move codes, and pooling, which chooses among them."""

from __future__ import annotations

import numpy as np

from truequant.integer import nodes
from truequant.runtimes.litert.layers import VALID, pad
from truequant.runtimes.litert.orders import Sizes, channels_last, plain, reshaped, stored, transposed
from truequant.runtimes.litert.writer import Writer, fixed, refuse

_MOST_INPUTS = 5
"""How many tensors XNNPACK joins at once."""


def write_reshape(writer: Writer, node: nodes.Reshape) -> None:
    """In the stored order where that is possible; a plane that linear layers alone read stays as it is stored, in rows."""
    before, after = writer.shapes[node.input], writer.shapes[node.output]
    order = writer.order[node.input]
    found = reshaped(before, order, after)
    if found is None and _rows_of_a_plane(writer, node):
        writer.flat[node.output] = before[1:]
        found = plain(2)
        source = writer.last(node.input)
    elif found is None:
        source, found = writer.plain(node.input), plain(len(after))
    else:
        source = writer.read(node.input)
    writer.reshape(source, stored(after, found), writer.write(node.output, found), node.output)


def _rows_of_a_plane(writer: Writer, node: nodes.Reshape) -> bool:
    before, after = writer.shapes[node.input], writer.shapes[node.output]
    readers = writer.program.readers(node.output)
    rows = len(before) > 2 and len(after) == 2 and before[0] == after[0] and None not in before[1:]
    return rows and bool(readers) and all(isinstance(reader, nodes.Linear) for reader in readers)


def write_transpose(writer: Writer, node: nodes.Transpose) -> None:
    """The same tensor: what reads it asks for the order that it needs."""
    writer.alias(node.output, writer.read(node.input), transposed(writer.order[node.input], node.permutation))


def write_concat(writer: Writer, node: nodes.Concat) -> None:
    """At most five at once, one after another."""
    order = writer.order[node.inputs[0]]
    axis = node.axis % len(order)
    place = order.index(axis)
    names, total = list(node.inputs), writer.shapes[node.inputs[0]][axis]
    made = writer.read(names.pop(0), order)
    while True:
        some, names = names[: _MOST_INPUTS - 1], names[_MOST_INPUTS - 1 :]
        for name in some:
            size = writer.shapes[name][axis]
            total = None if total is None or size is None else total + size
        sizes = list(stored(writer.shapes[node.output], order))
        sizes[place] = total
        written = (
            writer.tensor(f"{node.output}.joined", tuple(sizes), node.output) if names else writer.write(node.output, order)
        )
        operands = [made, *(writer.read(name, order) for name in some)]
        made = writer.file.op(
            "CONCATENATION", operands, written, 2, "ConcatenationOptions", axis=place, fusedActivationFunction=0
        )
        if not names:
            return


def write_slice(writer: Writer, node: nodes.Slice) -> None:
    order, shape = writer.order[node.input], writer.shapes[node.input]
    axis = node.axis % len(shape)
    (size,) = fixed(node, [shape[axis]])
    begin, end, _ = slice(node.begin, node.end, node.step).indices(size)
    place, rank = order.index(axis), len(order)
    begins, ends, steps = [0] * rank, [0] * rank, [1] * rank
    begins[place], ends[place], steps[place] = begin, end, node.step
    mask = sum(1 << i for i in range(rank) if i != place)
    operands = [writer.read(node.input)]
    for what, values in (("begin", begins), ("end", ends), ("step", steps)):
        operands.append(writer.integers(f"{node.output}.{what}", values))
    writer.file.op(
        "STRIDED_SLICE", operands, writer.write(node.output, order), 2, "StridedSliceOptions", beginMask=mask, endMask=mask,
        ellipsisMask=0, newAxisMask=0, shrinkAxisMask=0,
    )  # fmt: skip


def write_pad_repeated(writer: Writer, node: nodes.PadRepeated) -> None:
    """Rows by number, axis after axis."""
    order, shape = writer.order[node.input], writer.shapes[node.input]
    first = len(shape) - len(node.padding)
    axes = [axis for axis, pair in enumerate(node.padding, first) if any(pair)]
    x, sizes = writer.read(node.input), list(stored(shape, order))
    if not axes:
        writer.alias(node.output, x, order)
    for axis in axes:
        place, (length,) = order.index(axis), fixed(node, [shape[axis]])
        rows = writer.integers(f"{node.output}.rows", node.places(axis - first, length).numpy())
        sizes[place] = writer.shapes[node.output][axis]
        last = axis == axes[-1]
        made = writer.write(node.output, order) if last else writer.tensor(f"{node.output}.padded", tuple(sizes), node.output)
        x = writer.file.op("GATHER", [x, rows], made, 2, "GatherOptions", axis=place)


def write_take(writer: Writer, node: nodes.Take) -> None:
    order = writer.order[node.input]
    place = order.index(node.axis % len(order))
    rows = writer.integers(f"{node.output}.rows", node.indices)
    writer.file.op("GATHER", [writer.read(node.input), rows], writer.write(node.output, order), 2, "GatherOptions", axis=place)


def write_pad(writer: Writer, node: nodes.Pad) -> None:
    order = writer.order[node.input]
    pads = {len(order) - len(node.padding) + i: pair for i, pair in enumerate(node.padding)}
    places = writer.integers(f"{node.output}.pads", [pads.get(axis, (0, 0)) for axis in order])
    writer.file.op("PAD", [writer.read(node.input), places], writer.write(node.output, order), 2, "PadOptions")


def write_upsample(writer: Writer, node: nodes.Upsample) -> None:
    """Of a plane, the runtime's own nearest neighbour."""
    shape = writer.shapes[node.output]
    if len(shape) != 4 or len(node.factors) != 2:
        raise refuse(node, f"repeated along {len(node.factors)} of {len(shape)} axes")
    order = channels_last(4)
    sizes = writer.integers(f"{node.output}.sizes", fixed(node, shape[2:]))
    writer.file.op(
        "RESIZE_NEAREST_NEIGHBOR", [writer.last(node.input), sizes], writer.write(node.output, order), 2,
        "ResizeNearestNeighborOptions", alignCorners=False, halfPixelCenters=False,
    )  # fmt: skip


def write_depth_to_space(writer: Writer, node: nodes.DepthToSpace) -> None:
    """The kernel's own order of channels is that of `phases_first`; for the other one places are moved one by one."""
    n, (_, high, wide) = writer.shapes[node.input][0], fixed(node, writer.shapes[node.input][1:])
    if len(node.block) != 2:
        raise refuse(node, f"blocks of {len(node.block)} axes")
    (rows, columns), channels = node.block, fixed(node, writer.shapes[node.output][1:2])[0]
    x, order = writer.last(node.input), channels_last(4)
    if node.phases_first and rows == columns:
        writer.file.op("DEPTH_TO_SPACE", [x], writer.write(node.output, order), 2, "DepthToSpaceOptions", blockSize=rows)
        return
    inner = (rows, columns, channels) if node.phases_first else (channels, rows, columns)
    apart: Sizes = (n, high, wide, *inner)
    x = writer.reshape(x, apart, writer.tensor(f"{node.output}.apart", apart, node.output), node.output)
    places = [0, 1, 3, 2, 4, 5] if node.phases_first else [0, 1, 4, 2, 5, 3]
    moved = writer.tensor(f"{node.output}.moved", tuple(apart[p] for p in places), node.output)
    writer.file.op("TRANSPOSE", [x, writer.integers(f"{node.output}.places", places)], moved, 2, "TransposeOptions")
    writer.reshape(moved, stored(writer.shapes[node.output], order), writer.write(node.output, order), node.output)


def write_max_pool(writer: Writer, node: nodes.MaxPool) -> None:
    """Windows that reach beyond the input read the lowest code there."""
    if len(node.kernel) > 2 or any(d > 1 for d in node.dilation) or len(writer.shapes[node.input]) != len(node.kernel) + 2:
        raise refuse(node, "windows with gaps, or of three axes")
    shape, edge = writer.shapes[node.input], writer.edge(node.input)
    n, (channels, *space) = shape[0], fixed(node, shape[1:])
    counts = list(fixed(node, writer.shapes[node.output][2:]))
    fields = zip(space, node.kernel, node.stride, node.padding, counts, strict=True)
    pads = [(p, max(0, (c - 1) * t + k - s - p)) for s, k, t, p, c in fields]
    x, kernel, stride = writer.last(node.input), list(node.kernel), list(node.stride)
    if row := len(kernel) == 1:
        space, kernel, stride, pads, counts = [1, *space], [1, *kernel], [1, *stride], [(0, 0), *pads], [1, *counts]
        wide: Sizes = (n, *space, channels)
        x = writer.reshape(x, wide, writer.tensor(f"{node.input}.row", wide, node.input), node.output)
    if any(map(any, pads)):
        x = _lowest_around(writer, node, x, (n, *space, channels), [(0, 0), *pads, (0, 0)])
    order = channels_last(len(shape))
    whole: Sizes = (n, *counts, channels)
    made = writer.tensor(f"{node.output}.row", whole, node.output) if row else writer.write(node.output, order)
    writer.file.op(
        "MAX_POOL_2D", [x], made, 2, "Pool2DOptions", padding=VALID, strideW=stride[1], strideH=stride[0],
        filterWidth=kernel[1], filterHeight=kernel[0], fusedActivationFunction=0,
    )  # fmt: skip
    if row:
        writer.reshape(made, stored(writer.shapes[node.output], order), writer.write(node.output, order), node.output)
    assert edge == writer.edge(node.output)


def _lowest_around(writer: Writer, node: nodes.MaxPool, x: int, sizes: Sizes, pads: list[tuple[int, int]]) -> int:
    edge = writer.edge(node.input)
    if edge.zero_point == -128:
        return pad(writer, node.input, x, sizes, pads)
    wide = tuple(None if s is None else s + sum(p) for s, p in zip(sizes, pads, strict=True))
    lowest = writer.file.constant(
        writer.fresh(f"{node.output}.lowest"), np.array([-128], np.int8), np.float32(edge.scale), edge.zero_point
    )
    made = writer.tensor(f"{node.input}.padded", wide, node.input)
    return writer.file.op("PADV2", [x, writer.integers(f"{node.output}.pads", pads), lowest], made, 2, "PadV2Options")
