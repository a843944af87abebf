"""The writer of each kind of node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from truequant.integer import nodes as program_nodes
from truequant.integer.nodes import Node
from truequant.runtimes.litert import layers, movement, pointwise
from truequant.runtimes.litert.writer import Writer

WRITERS: dict[type[Node], Callable[[Writer, Any], None]] = {
    program_nodes.Conv: layers.write_conv, program_nodes.Linear: layers.write_linear,
    program_nodes.GlobalAverage: layers.write_average,
    program_nodes.Add: pointwise.write_pair, program_nodes.Sub: pointwise.write_pair, program_nodes.Mul: pointwise.write_pair,
    program_nodes.Clamp: pointwise.write_clamp, program_nodes.Table: pointwise.write_table,
    program_nodes.MaxPool: movement.write_max_pool, program_nodes.Reshape: movement.write_reshape,
    program_nodes.Transpose: movement.write_transpose, program_nodes.Concat: movement.write_concat,
    program_nodes.Slice: movement.write_slice, program_nodes.Take: movement.write_take, program_nodes.Pad: movement.write_pad,
    program_nodes.PadRepeated: movement.write_pad_repeated,
    program_nodes.Upsample: movement.write_upsample, program_nodes.DepthToSpace: movement.write_depth_to_space,
}  # fmt: skip
