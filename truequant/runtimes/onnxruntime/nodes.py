"""Nodes that onnxruntime wants otherwise than plain: where its kernel is slower than need be, or computes another rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from truequant.integer.nodes import Add, Conv, DepthToSpace, Linear, MaxPool, Mul, Node, Reshape, Sub, Table, Upsample
from truequant.runtimes.onnx import code_movement, integer_layers
from truequant.runtimes.onnx.integer_layers import reshape_to
from truequant.runtimes.onnx.lookups import flat_rows, look_up_flat, table_constant, write_pairs, write_table
from truequant.runtimes.onnx.nodes import binary
from truequant.runtimes.onnx.writer import Writer
from truequant.runtimes.onnxruntime import pixels
from truequant.runtimes.onnxruntime.channels_last import between_convolutions, read_by, write_flat
from truequant.runtimes.onnxruntime.float_tables import float_kernel_of, write_float
from truequant.runtimes.onnxruntime.pair_proofs import proven
from truequant.runtimes.onnxruntime.pooled_sums import pooling_of, write_pooling, write_sums


def _conv(writer: Writer, node: Conv) -> None:
    if pooling_of(writer.program, node, writer.layout):
        write_sums(writer, node, **integer_layers.window_of(node))
    else:
        integer_layers.conv(writer, node)


def _max_pool(writer: Writer, node: MaxPool) -> None:
    if node.input in writer.sums:
        write_pooling(writer, node, **code_movement.window_of(node))
    else:
        code_movement.max_pool(writer, node)


def _reshape(writer: Writer, node: Reshape) -> None:
    if not write_flat(writer, node):
        code_movement.reshape(writer, node)


def _linear(writer: Writer, node: Linear) -> None:
    source, layer = read_by(writer, node)
    integer_layers.linear(writer, layer, source)


def _binary(writer: Writer, node: Add | Sub | Mul) -> None:
    if proven(writer.program, node, writer.layout):
        binary(writer, node)
    else:
        write_pairs(writer, node, _looked_up)


def _table(writer: Writer, node: Table) -> None:
    kernel = float_kernel_of(writer.program, node)
    if kernel is None:
        write_table(writer, node, _looked_up)
    else:
        write_float(writer, node, kernel)


def _looked_up(writer: Writer, node: Add | Sub | Mul | Table, entries: Any, index: str) -> None:
    """In one row, with the channels last between convolutions (see `channels_last`)."""
    name, shape, moved = node.output, writer.shapes[node.output], between_convolutions(writer, node.output)
    if moved is None:
        look_up_flat(writer, node, entries, index)
        return
    table = table_constant(writer, node, entries)
    index = writer.node("Transpose", [index], writer.fresh(f"{name}.moved_index"), name=f"{name}.moved", perm=moved.there)
    rows, lying = flat_rows(writer, node, table, index), writer.fresh(f"{name}.channels_last")
    reshape_to(writer, rows, lying, tuple(shape[axis] for axis in moved.there))
    writer.node("Transpose", [lying], name, name=f"{name}.order", perm=moved.back)


WRITERS: dict[type[Node], Callable[[Writer, Any], None]] = {
    Conv: _conv, MaxPool: _max_pool, Reshape: _reshape, Linear: _linear, Add: _binary, Sub: _binary, Mul: _binary,
    Table: _table, Upsample: pixels.upsample, DepthToSpace: pixels.depth_to_space,
}  # fmt: skip
