"""What a caller may give for a program."""

from __future__ import annotations

from truequant.errors import ArgumentTypeError
from truequant.integer import Int8Model, IntegerProgram


def program_of(int8: Int8Model | IntegerProgram) -> IntegerProgram:
    """The program of a model, or the program itself."""
    if isinstance(int8, Int8Model):
        return int8.program
    if isinstance(int8, IntegerProgram):
        return int8
    raise ArgumentTypeError("not an Int8 model", got=type(int8).__name__, expected="Int8Model", fix="tq.convert(qat)")
