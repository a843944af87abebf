"""Execution of a program: its nodes in their order."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from truequant.integer.program import IntegerProgram


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
    readers = Counter(name for node in program.nodes for name in node.reads)
    alive = dict(inputs)
    kept = {name: alive[name] for name in alive if name in keep}
    for node in program.nodes:
        names = node.reads
        result = node.run(program.edges, [alive[name] for name in names])
        alive[node.output] = given.get(node.output, result)
        if node.output in keep:
            kept[node.output] = result
        readers.subtract(names)
        for name in {*names, node.output}:
            if readers[name] == 0:
                del alive[name]
    return kept
