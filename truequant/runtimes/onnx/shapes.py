"""Shapes and dtypes of a program whose inputs have dynamic sizes."""

from __future__ import annotations

import torch

from truequant.integer import IntegerProgram, program_layout

_SIZES = (64, 128)


def dynamic_shapes(program: IntegerProgram) -> tuple[dict[str, tuple[int | None, ...]], dict[str, torch.dtype]]:
    """The shape of every name, None where it follows a dynamic size of the inputs, and the dtype of every value."""

    def layout(size: int) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
        return program_layout(program, {i.name: tuple(size if n is None else n for n in i.shape) for i in program.inputs})

    # Two sizes that suit any stride and pooling alike tell which axes follow the inputs.
    (small, dtypes), (large, _) = layout(_SIZES[0]), layout(_SIZES[1])
    shapes: dict[str, tuple[int | None, ...]] = {
        name: tuple(a if a == b else None for a, b in zip(small[name], large[name], strict=True)) for name in small
    }
    return shapes, dtypes
