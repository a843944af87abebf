"""What onnxruntime puts back in order, one byte at a time, though its integer convolutions write and read channels-last.

Flattened images before a linear layer, in QDQ layout: they are flattened as they lie, and the columns of the layer's weight are
permuted once, when the file is written. The codes in their own order are in no tensor of the file; `hidden_edges` puts them
into a copy of it.

Tables between convolutions: their codes are looked up in one row. The file moves the channels to the end before it and back
behind it, which onnxruntime cancels against what it does around convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from truequant.integer import IntegerProgram
from truequant.integer.nodes import (
    Add,
    AveragePool,
    Clamp,
    Concat,
    Conv,
    DepthToSpace,
    GlobalAverage,
    Linear,
    MaxPool,
    Mul,
    Node,
    Pad,
    PadRepeated,
    Reshape,
    Slice,
    Sub,
    Table,
    Upsample,
)
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnx.writer import Writer
from truequant.runtimes.onnxruntime.pooled_sums import pooling_of
from truequant.runtimes.targets import runs_here

_KEEPS = (MaxPool, AveragePool, Add, Clamp)
"""What onnxruntime computes channels-last behind a convolution."""
_KEEPS_PIXELS = (*_KEEPS, Sub, Mul, Table, Concat, Pad, PadRepeated, Slice, Upsample, DepthToSpace)
"""What it computes or moves with the channels last between convolutions."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Axes of an image with its channels last, and back."""

    there: list[int]
    back: list[int]


def between_convolutions(writer: Writer, name: str) -> Moved | None:
    """How the image `name`, the result of a table, is moved to lie channels-last; None where convolutions do not both write
    and read such images around it.
    """
    program, shape = writer.program, writer.shapes[name]
    dynamic = sum(n is None for n in shape) > 1
    if len(shape) < 4 or dynamic or all(n == 1 for n in shape[2:]):
        return None
    writers = {other.output: other for other in program.nodes}
    if not _written(program, writers, name) or not _read(program, name):
        return None
    last = len(shape) - 1
    return Moved([0, *range(2, last + 1), 1], [0, last, *range(1, last)])


def _written(program: IntegerProgram, writers: dict[str, Node], name: str) -> bool:
    """Whether `name` is computed place by place from what a convolution writes, among others."""
    waiting, seen = [name], set()
    while waiting:
        behind = writers.get(waiting.pop())
        if isinstance(behind, Conv):
            if pooling_of(program, behind) is None:
                return True
        elif isinstance(behind, _KEEPS_PIXELS) and behind.output not in seen:
            seen.add(behind.output)
            waiting += behind.reads
    return False


def _read(program: IntegerProgram, name: str) -> bool:
    """Whether a convolution, or an average of whole images, reads what is computed place by place from `name`."""
    waiting, seen = [name], set()
    while waiting:
        for reader in program.readers(waiting.pop()):
            if isinstance(reader, (Conv, GlobalAverage)):
                return True
            if isinstance(reader, _KEEPS_PIXELS) and reader.output not in seen:
                seen.add(reader.output)
                waiting.append(reader.output)
    return False


def readers_of(program: IntegerProgram, node: Reshape, layout: Layout = "qdq") -> tuple[Linear, ...]:
    """The linear layers that read an image flattened channels-last in this layout of the file; none where its codes are written
    in their own order.
    """
    edge = program.edges.get(node.output)
    if layout != "qdq" or not runs_here(program) or edge is None or edge.wide or node.output in program.output_names():
        return ()
    if len(node.shape) != 2 or node.shape[0] not in (0, -1) or not _behind_a_convolution(program, node):
        return ()
    readers = program.readers(node.output)
    layers = tuple(other for other in readers if isinstance(other, Linear) and other.output in program.edges)
    return layers if layers and len(layers) == len(readers) else ()


def _behind_a_convolution(program: IntegerProgram, node: Reshape) -> bool:
    writers = {other.output: other for other in program.nodes}
    behind: Node | None = writers.get(node.input)
    while isinstance(behind, _KEEPS):
        before = writers.get(behind.reads[0])
        if isinstance(before, Conv) and pooling_of(program, before) is behind:
            return False
        behind = before
    return isinstance(behind, Conv) and len(behind.stride) == 2


def write_flat(writer: Writer, node: Reshape) -> bool:
    """Write an image flattened channels-last, if its readers take it so."""
    name, shape = node.output, writer.shapes[node.input]
    if len(shape) != 4 or None in shape[1:] or shape[1] == 1 or not readers_of(writer.program, node, writer.layout):
        return False
    if shape[2] == shape[3] == 1:
        return False
    moved, flat = writer.fresh(f"{name}.moved"), writer.fresh(f"{name}.channels_last")
    writer.node("Transpose", [node.input], moved, name=moved, perm=[0, 2, 3, 1])
    writer.node("Reshape", [moved, writer.integers(f"{name}.shape", node.shape)], flat, name=name)
    writer.alias(flat, name)
    writer.flat[name] = flat, tuple(int(n or 0) for n in shape[1:])
    return True


def read_by(writer: Writer, node: Linear) -> tuple[str, Linear]:
    """The tensor of the file that a layer reads, and the layer with the columns of its weight in the order of that tensor."""
    if node.input not in writer.flat:
        return node.input, node
    source, (channels, *space) = writer.flat[node.input]
    weight = node.weight.reshape(-1, channels, *space).permute(0, 2, 3, 1).reshape(node.weight.shape)
    return source, replace(node, weight=weight)
