"""Where onnxruntime's codes might be others than the program's."""

from __future__ import annotations

from collections.abc import Iterator

from truequant.integer import IntegerProgram, float_sums
from truequant.runtimes.onnxruntime.cpus import adds_that_differ
from truequant.runtimes.saturation import saturating_layers
from truequant.runtimes.sentences import names_of, saturated
from truequant.schemes import Target


def exceptions(program: IntegerProgram, target: Target) -> Iterator[str]:
    """A sentence for each kind of machine."""
    saturating = saturating_layers(program)
    if saturating and not target.saturating_pairs:
        yield saturated(saturating)
    adds = {} if "x86 without FMA" in target.other_cpus else adds_that_differ(program, "x86 without FMA")
    if adds:
        pairs = sum(adds.values())
        all_pairs = 65_536 * len(adds)
        yield f"x86 without FMA: {pairs} of {all_pairs:,} pairs of codes add up to another code in {names_of(list(adds))}"
    if sums := float_sums(program):
        yield f"any machine: sums over 16-bit codes run in float32, graded but never EXACT, in {names_of(list(sums))}"
