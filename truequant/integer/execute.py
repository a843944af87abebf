"""Execution of a program: one function for each kind of node, in the order of the nodes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from truequant.integer import elementwise, islands, layers, linears, movement, pooling, products
from truequant.integer.nodes import (
    Add,
    AveragePool,
    Clamp,
    Concat,
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
    Pad,
    Quantize,
    Reshape,
    Slice,
    Sub,
    Table,
    Take,
    Transpose,
    Upsample,
    WeightOnlyLinear,
    inputs_of,
)  # fmt: skip
from truequant.integer.program import IntegerProgram

RUN: dict[type[Node], Callable[..., Tensor]] = {
    Quantize: elementwise.quantize,
    Dequantize: elementwise.dequantize,
    Conv: layers.conv,
    Linear: layers.linear,
    MatMul: products.matmul,
    Add: elementwise.binary,
    Sub: elementwise.binary,
    Mul: elementwise.binary,
    Lookup: elementwise.lookup,
    Table: elementwise.table,
    GlobalAverage: pooling.global_average,
    AveragePool: pooling.average_pool,
    MaxPool: pooling.max_pool,
    Clamp: elementwise.clamp,
    Reshape: movement.reshape,
    Transpose: movement.transpose,
    Slice: movement.cut,
    Take: movement.take,
    Upsample: movement.upsample,
    DepthToSpace: movement.depth_to_space,
    Pad: movement.pad,
    Concat: movement.concat,
    Island: islands.run,
    WeightOnlyLinear: linears.weight_only,
    DynamicLinear: linears.dynamic,
}
"""`run(node, program, *inputs) -> output`. Inputs have shapes that `output_shape` accepts."""


@torch.no_grad()
def execute(
    program: IntegerProgram, inputs: Mapping[str, Tensor], keep: Collection[str], given: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors named in `keep`, in the order in which they are written: codes as integers, values as float32.

    `inputs` are the program's, by name; `program_shapes` says whether they fit. What is not kept lives until its last reader.
    given: codes that readers of an edge get in place of those computed for it. What is kept is what was computed: with the
    codes that another runtime has on every edge, each node answers for itself alone.
    """
    devices = {tensor.device.type for tensor in inputs.values()} or {"cpu"}
    with contextlib.ExitStack() as stack:
        for device in sorted(devices):  # autocast would round the sums to bfloat16
            stack.enter_context(torch.autocast(device, enabled=False))
        return _run(program, inputs, keep, given or {})


def _run(
    program: IntegerProgram, inputs: Mapping[str, Tensor], keep: Collection[str], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    readers = Counter(name for node in program.nodes for name in inputs_of(node))
    alive = dict(inputs)
    kept = {name: alive[name] for name in alive if name in keep}
    for node in program.nodes:
        names = inputs_of(node)
        result = RUN[type(node)](node, program, *(alive[name] for name in names))
        alive[node.output] = given.get(node.output, result)
        if node.output in keep:
            kept[node.output] = result
        readers.subtract(names)
        for name in {*names, node.output}:
            if readers[name] == 0:
                del alive[name]
    return kept
