"""Nodes that move codes, as the ONNX nodes that move them in the runtime: no kernel dequantizes here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from truequant.integer import nodes as program_nodes
from truequant.integer.nodes import Node
from truequant.runtimes.onnx.kernels import kernels_of
from truequant.runtimes.onnx.writer import Writer, numpy_of


def _moved(writer: Writer, node: Any, inputs: list[str], **attributes: Any) -> None:
    """A node that moves codes. Those of 16 bits, where runtimes have no such kernel, pass as values: quantized again on their
    own grid they are the same codes.
    """
    kernels, edge = kernels_of(node), writer.program.edges.get(node.output)
    if edge is None or not edge.wide or not kernels.wide_as_values:
        writer.node(kernels.op, inputs, node.output, name=node.output, **attributes)
        return
    value = writer.fresh(f"{node.output}.value")
    writer.node(kernels.op, [writer.dequantized(inputs[0], node.output), *inputs[1:]], value, name=node.output, **attributes)
    writer.quantized(value, node.output, *writer.limits(edge))


def window_of(node: program_nodes.MaxPool) -> dict[str, Any]:
    """The attributes of MaxPool."""
    return {
        "kernel_shape": list(node.kernel), "strides": list(node.stride), "pads": [*node.padding, *node.padding],
        "dilations": list(node.dilation), "ceil_mode": int(node.ceil_mode),
    }  # fmt: skip


def max_pool(writer: Writer, node: program_nodes.MaxPool) -> None:
    """A pooling of codes."""
    source, padding = node.input, node.padding
    edge = writer.edge(node.input)
    if any(padding) and max(node.dilation) > 1 and not edge.wide:
        # onnxruntime refuses padding of a whole kernel, and gives 0 for a dilated window that lies in the padding alone.
        source, rank = writer.fresh(f"{node.output}.padded"), len(writer.shapes[node.input])
        sides = [0] * (rank - len(padding)) + list(padding)
        lowest = writer.constant(f"{node.output}.lowest", np.array(edge.qmin, writer.dtype(edge)))
        writer.node("Pad", [node.input, writer.integers(f"{source}.pads", sides * 2), lowest], source, name=source)
        node = replace(node, padding=(0,) * len(padding))
    _moved(writer, node, [source], **window_of(node))


def _clamp(writer: Writer, node: program_nodes.Clamp) -> None:
    writer.clip(node.input, node.output, node.low, node.high)


def reshape(writer: Writer, node: program_nodes.Reshape) -> None:
    """Codes in another shape."""
    _moved(writer, node, [node.input, writer.integers(f"{node.output}.shape", node.shape)])


def _transpose(writer: Writer, node: program_nodes.Transpose) -> None:
    _moved(writer, node, [node.input], perm=list(node.permutation))


def _slice(writer: Writer, node: program_nodes.Slice) -> None:
    end = 2**63 - 1 if node.end is None else node.end
    parts = ([node.begin], [end], [node.axis], [node.step])
    constants = [writer.integers(f"{node.output}.{k}", v) for k, v in zip(("begin", "end", "axis", "step"), parts, strict=True)]
    _moved(writer, node, [node.input, *constants])


def _pads(writer: Writer, node: program_nodes.Pad | program_nodes.PadRepeated) -> str:
    """ONNX's sizes: all that comes before, then all that comes behind."""
    before = len(writer.shapes[node.input]) - len(node.padding)
    pairs = [(0, 0)] * before + list(node.padding)
    return writer.integers(f"{node.output}.pads", [p[0] for p in pairs] + [p[1] for p in pairs])


def _pad(writer: Writer, node: program_nodes.Pad) -> None:
    zero = writer.scale_and_zero(node.input)[1]
    if writer.edge(node.output).wide:
        zero = writer.constant(f"{node.output}.zero", np.float32(0))
    _moved(writer, node, [node.input, _pads(writer, node), zero])


def _pad_repeated(writer: Writer, node: program_nodes.PadRepeated) -> None:
    _moved(writer, node, [node.input, _pads(writer, node)], mode=node.mode)


def _concat(writer: Writer, node: program_nodes.Concat) -> None:
    _moved(writer, node, list(node.inputs), axis=node.axis)


def _take(writer: Writer, node: program_nodes.Take) -> None:
    _moved(writer, node, [node.input, writer.integers(f"{node.output}.indices", node.indices)], axis=node.axis)


def upsample(writer: Writer, node: program_nodes.Upsample) -> None:
    """Resize by whole factors: the same code for each of the repeated places."""
    kept = len(writer.shapes[node.input]) - len(node.factors)
    scales = writer.constant(f"{node.output}.factors", np.array([1.0] * kept + list(node.factors), np.float32))
    _moved(
        writer, node, [node.input, "", scales], mode="nearest", coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )  # fmt: skip


def depth_to_space(writer: Writer, node: program_nodes.DepthToSpace) -> None:
    """Reshape, Transpose, Reshape: DepthToSpace itself knows two axes and float codes only."""
    rank, shape, block = len(node.block), writer.shapes[node.input], node.block
    channels = shape[1]
    assert channels is not None
    left = channels // int(np.prod(block))
    depth, first_of_block = ([*block, left], 1) if node.phases_first else ([left, *block], 2)
    blocks, moved = writer.fresh(f"{node.output}.blocks"), writer.fresh(f"{node.output}.moved")
    if sum(n is None for n in shape[2:]) > 1:
        first = writer.measured(node.input, f"{blocks}.first", 0, 1)
        space = writer.measured(node.input, f"{blocks}.space", 2, 2 + rank)
        inner = writer.integers(f"{blocks}.inner", depth)
        wide, factors = writer.fresh(f"{blocks}.wide"), writer.integers(f"{blocks}.factors", block)
        writer.node("Mul", [space, factors], wide, name=wide)
        split = writer.joined(f"{blocks}.shape", [first, inner, space])
        outer = writer.integers(f"{blocks}.outer", [left])
        joined = writer.joined(f"{node.output}.shape", [first, outer, wide])
    else:
        sizes = [0, *depth, *(-1 if n is None else n for n in shape[2:])]
        split = writer.integers(f"{blocks}.shape", sizes)
        sizes = [0, left, *(-1 if n is None else n * b for n, b in zip(shape[2:], block, strict=True))]
        joined = writer.integers(f"{node.output}.shape", sizes)
    pairs = [axis for i in range(rank) for axis in (2 + rank + i, first_of_block + i)]
    writer.node("Reshape", [node.input, split], blocks, name=blocks)
    writer.node("Transpose", [blocks], moved, name=moved, perm=[0, 1 + (rank if node.phases_first else 0), *pairs])
    writer.node("Reshape", [moved, joined], node.output, name=node.output)


def _constant(writer: Writer, node: program_nodes.Constant) -> None:
    """Stored codes or values, repeated along the batch where the program says so."""
    codes = numpy_of(node.codes)
    if node.output in writer.program.edges:
        codes = codes.astype(writer.dtype(writer.edge(node.output)))
    codes = writer.constant(f"{node.output}.codes", codes)
    if node.like is None:
        writer.node("Identity", [codes], node.output, name=node.output)
        return
    batch = writer.measured(node.like, f"{node.output}.batch", 0, 1)
    rest = writer.integers(f"{node.output}.rest", tuple(node.codes.shape[1:]))
    shape = writer.joined(f"{node.output}.shape", [batch, rest])
    writer.node(kernels_of(node).op, [codes, shape], node.output, name=node.output)


MOVEMENTS: dict[type[Node], Callable[[Writer, Any], None]] = {
    program_nodes.MaxPool: max_pool, program_nodes.Clamp: _clamp, program_nodes.Reshape: reshape,
    program_nodes.Transpose: _transpose, program_nodes.Slice: _slice, program_nodes.Take: _take,
    program_nodes.Upsample: upsample, program_nodes.DepthToSpace: depth_to_space, program_nodes.Pad: _pad,
    program_nodes.PadRepeated: _pad_repeated, program_nodes.Concat: _concat,
    program_nodes.Constant: _constant,
}  # fmt: skip
