"""Upsampling by whole factors and channels that move into space, between convolutions: with the channels last.

onnxruntime keeps images between its integer convolutions with the channels last, where a pixel is a run of bytes. Its Resize
takes several times as long there, and a Transpose that moves single codes ten times as long as one that moves pixels.
"""

from __future__ import annotations

from collections.abc import Callable

from truequant.integer.nodes import DepthToSpace, Upsample
from truequant.runtimes.onnx import code_movement
from truequant.runtimes.onnx.integer_layers import reshape_to
from truequant.runtimes.onnx.writer import Writer
from truequant.runtimes.onnxruntime.channels_last import Moved, between_convolutions

Shape = tuple[int | None, ...]


def upsample(writer: Writer, node: Upsample) -> None:
    """Each pixel repeated in its row, and each row."""
    moved = between_convolutions(writer, node.output)
    if moved is None or len(writer.shapes[node.input]) != len(node.factors) + 2:
        code_movement.upsample(writer, node)
        return
    _written(writer, node, moved, lambda lying, shape: _repeated(writer, node, lying, shape))


def depth_to_space(writer: Writer, node: DepthToSpace) -> None:
    """The places of a block beside each other, row by row."""
    moved = between_convolutions(writer, node.output)
    if moved is None:
        code_movement.depth_to_space(writer, node)
        return
    _written(writer, node, moved, lambda lying, shape: _split(writer, node, lying, shape))


def _written(
    writer: Writer, node: Upsample | DepthToSpace, moved: Moved, pixels: Callable[[str, Shape], str]
) -> None:  # fmt: skip
    """The channels to the end, what `pixels` makes of that, and back; onnxruntime cancels both against its own."""
    name, lying, done = node.output, writer.fresh(f"{node.output}.lying"), writer.fresh(f"{node.output}.channels_last")
    writer.node("Transpose", [node.input], lying, name=lying, perm=moved.there)
    wide = pixels(lying, tuple(writer.shapes[node.input][axis] for axis in moved.there))
    reshape_to(writer, wide, done, tuple(writer.shapes[name][axis] for axis in moved.there))
    writer.node("Transpose", [done], name, name=name, perm=moved.back)


def _repeated(writer: Writer, node: Upsample, lying: str, shape: Shape) -> str:
    first, *space, channels = shape
    split: list[int | None] = [first]
    factors = [1]
    for size, factor in zip(space, node.factors, strict=True):
        split += [size, 1]
        factors += [1, factor]
    parts, wide = writer.fresh(f"{node.output}.parts"), writer.fresh(f"{node.output}.wide")
    reshape_to(writer, lying, parts, (*split, channels))
    return writer.node("Expand", [parts, writer.integers(f"{wide}.factors", [*factors, 1])], wide, name=wide)


def _split(writer: Writer, node: DepthToSpace, lying: str, shape: Shape) -> str:
    first, *space, _ = shape
    rank, channels = len(space), writer.shapes[node.output][1]
    parts, wide = writer.fresh(f"{node.output}.parts"), writer.fresh(f"{node.output}.wide")
    depth = (*node.block, channels) if node.phases_first else (channels, *node.block)
    reshape_to(writer, lying, parts, (first, *space, *depth))
    block = 1 + rank + (not node.phases_first)
    rows = [axis for i in range(rank) for axis in (1 + i, block + i)]
    last = 1 + 2 * rank if node.phases_first else 1 + rank
    return writer.node("Transpose", [parts], wide, name=wide, perm=[0, *rows, last])
