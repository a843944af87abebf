"""The integer program: its nodes, its execution with real integers, and the model that users hold."""

from truequant.integer.clipping import count_clipped
from truequant.integer.execute import execute
from truequant.integer.model import Int8Model, load
from truequant.integer.program import IntegerProgram, ProgramInput
from truequant.integer.shapes import program_layout, program_shapes
from truequant.integer.wide import float_sums, is_wide

__all__ = [
    "Int8Model", "IntegerProgram", "ProgramInput", "count_clipped", "execute", "float_sums", "is_wide", "load",
    "program_layout", "program_shapes",
]  # fmt: skip
