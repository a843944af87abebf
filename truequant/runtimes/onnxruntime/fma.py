"""Adds whose codes depend on whether a CPU rounds a product and a sum once, as FMA does, or twice."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from truequant import numerics
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Add, Edge


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
