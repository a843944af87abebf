"""Shapes and dtypes of a program whose inputs have dynamic sizes."""

from __future__ import annotations

import torch

from truequant.errors import ConversionError
from truequant.integer import IntegerProgram, program_layout

_PAIRS = ((64, 128), (32, 64), (16, 32), (8, 16), (4, 8), (2, 4))
"""Pairs of sizes to try: large ones suit any stride and pooling alike, small ones a model with a longest sequence."""


def dynamic_shapes(program: IntegerProgram) -> tuple[dict[str, tuple[int | None, ...]], dict[str, torch.dtype]]:
    """The shape of every name, None where it follows a dynamic size of the inputs, and the dtype of every value.

    `ConversionError` where the program computes inputs of none of the sizes that are tried.
    """

    def layout(size: int) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
        return program_layout(program, {i.name: tuple(size if n is None else n for n in i.shape) for i in program.inputs})

    first: ConversionError | None = None
    for sizes in _PAIRS:
        try:
            # Two sizes tell which axes follow the inputs.
            (small, dtypes), (large, _) = layout(sizes[0]), layout(sizes[1])
        except ConversionError as error:
            first = first or error
            continue
        shapes: dict[str, tuple[int | None, ...]] = {
            name: tuple(a if a == b else None for a, b in zip(small[name], large[name], strict=True)) for name in small
        }
        return shapes, dtypes
    assert first is not None
    raise first
