"""What a file promises on machines of other kinds, found from the program alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from truequant import numerics
from truequant.integer import IntegerProgram, float_sums
from truequant.integer.nodes import FLOAT_LINEARS, Add, Edge
from truequant.runtimes.saturation import saturating_layers
from truequant.schemes import ONNXRUNTIME, TARGETS


def promises(program: IntegerProgram) -> tuple[str, ...]:
    """A sentence for each kind of machine where onnxruntime might not compute the program's codes, or one for all."""
    target = TARGETS.get(program.target, ONNXRUNTIME)
    if not target.runs_here:
        return (f"target '{target.name}': no runtime of it runs here, so that its codes are UNVERIFIED",)
    lines = []
    saturating = saturating_layers(program)
    if saturating and not target.saturating_pairs:
        layers = _names(saturating)
        lines.append(
            f"x86 with AVX2, without VNNI: other codes, because pairs saturate in {layers}; target 'onnxruntime' is exact"
        )
    adds = {} if target.without_fma else adds_that_need_fma(program)
    if adds:
        pairs = sum(adds.values())
        lines.append(
            f"x86 without FMA: {pairs} of {65_536 * len(adds):,} pairs of codes add up to another code in {_names(list(adds))}"
        )
    floats = [node.output for node in program.nodes if isinstance(node, FLOAT_LINEARS)]
    if floats:
        lines.append(f"wherever it runs: the float sums of {_names(floats)}, which every runtime rounds in its own way")
    if sums := float_sums(program):
        lines.append(f"any machine: sums over 16-bit codes run in float32, graded but never EXACT, in {_names(list(sums))}")
    if not lines:
        return ("promised: the same codes on every x86 CPU, with VNNI or without, with FMA or without",)
    return ("promised: the same codes on every x86 CPU but", *lines)


def adds_that_need_fma(program: IntegerProgram) -> dict[str, int]:
    """Adds for which a CPU without FMA gives another code than the rule, and for how many pairs of codes."""
    counts = {
        node.output: pairs_that_need_fma(
            program.edges[node.left], program.edges[node.right], program.edges[node.output], node.low, node.high
        )
        for node in program.nodes
        if isinstance(node, Add) and node.rule == "onnxruntime"
    }
    return {name: count for name, count in counts.items() if count}


@lru_cache(maxsize=512)
def pairs_that_need_fma(left: Edge, right: Edge, output: Edge, low: int, high: int) -> int:
    """Of all pairs of codes, those that a CPU without FMA adds up to another code."""
    a, b = (torch.arange(e.qmin, e.qmax + 1, dtype=torch.float32) for e in (left, right))
    x, y = torch.meshgrid(a, b, indexing="ij")
    p, q, r = ((torch.tensor(np.float32(e.scale)), torch.tensor(float(e.zero_point))) for e in (left, right, output))
    one, two = (numerics.add(x, y, p, q, r, low, high, "onnxruntime", fused) for fused in (True, False))
    return int((one != two).sum())


def _names(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
