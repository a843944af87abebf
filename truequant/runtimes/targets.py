"""What the target of a program says to every runtime."""

from __future__ import annotations

from truequant.integer import IntegerProgram
from truequant.schemes import TARGETS


def runs_here(program: IntegerProgram) -> bool:
    """Whether the runtime of a program's target can be run here. One that is not known is taken at its word."""
    target = TARGETS.get(program.target)
    return target is None or target.runs_here


def pairs_saturate(program: IntegerProgram) -> bool:
    """Whether CPUs of the target may sum pairs of products u8 x s8 in int16."""
    target = TARGETS.get(program.target)
    return target is not None and target.saturating_pairs
