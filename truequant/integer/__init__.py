"""The integer program: its nodes, its execution with real integers, and the model that users hold."""

from truequant.integer.execute import execute
from truequant.integer.model import Int8Model, load
from truequant.integer.program import IntegerProgram, ProgramInput
from truequant.integer.shapes import program_layout, program_shapes

__all__ = ["Int8Model", "IntegerProgram", "ProgramInput", "execute", "load", "program_layout", "program_shapes"]
