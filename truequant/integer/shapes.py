"""Shapes of every tensor of a program from the shapes of its inputs, in plain integers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from truequant.errors import ConversionError
from truequant.integer.nodes import Shape
from truequant.integer.program import DTYPES, IntegerProgram

MAX_ELEMENTS = 2**36
"""Bound of each tensor of a program: no file and no input makes a call allocate without end."""


def program_shapes(program: IntegerProgram, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every name. ConversionError at the first node that its input does not fit, or that writes too much."""
    return program_layout(program, inputs)[0]


def program_layout(program: IntegerProgram, inputs: Mapping[str, Shape]) -> tuple[dict[str, Shape], dict[str, torch.dtype]]:
    """The shape of every name, and the dtype of every value. Raises as `program_shapes` does."""
    shapes = dict(inputs)
    dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in program.inputs}
    for node in program.nodes:
        # Codes have no dtype here: how they are stored is not the program's matter.
        read = [dtypes.get(name, torch.float32) for name in node.reads]
        shape, dtype = node.layout([shapes[name] for name in node.reads], read)
        shapes[node.output] = shape
        if node.output not in program.edges:
            dtypes[node.output] = dtype
        if max(math.prod(shape), *shape, 0) > MAX_ELEMENTS:
            raise ConversionError(
                f"{node.label} is too large", got=f"shape {shape}", expected=f"at most {MAX_ELEMENTS} elements"
            )
    return shapes, dtypes
