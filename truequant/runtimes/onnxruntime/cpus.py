"""Adds whose codes depend on the kind of CPU: it rounds product and sum once, as FMA does, or twice, or adds in fixed point."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from truequant import numerics
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Add, Edge
from truequant.schemes import Cpu


def adds_that_differ(program: IntegerProgram, cpu: Cpu) -> dict[str, int]:
    """Adds for which a CPU of that kind gives another code than the rule, and for how many pairs of codes."""
    counts = {
        node.output: pairs_that_differ(
            cpu, program.edges[node.left], program.edges[node.right], program.edges[node.output], node.low, node.high
        )
        for node in program.nodes
        if isinstance(node, Add) and node.rule == "onnxruntime"
    }
    return {name: count for name, count in counts.items() if count}


@lru_cache(maxsize=512)
def pairs_that_differ(cpu: Cpu, left: Edge, right: Edge, output: Edge, low: int, high: int) -> int:
    """Of all pairs of codes, those that a CPU of that kind adds up to another code; all where its kernel is not known."""
    a, b = (torch.arange(e.qmin, e.qmax + 1, dtype=torch.float32) for e in (left, right))
    x, y = torch.meshgrid(a, b, indexing="ij")
    p, q, r = ((torch.tensor(np.float32(e.scale)), torch.tensor(float(e.zero_point))) for e in (left, right, output))
    ours = numerics.add(x, y, p, q, r, low, high, "onnxruntime")
    if cpu == "64-bit Arm":
        theirs = numerics.add_on_arm(x, y, p, q, r, low, high)
    else:
        theirs = numerics.add(x, y, p, q, r, low, high, "onnxruntime", fused=cpu == "x86")
    return ours.numel() if theirs is None else int((ours != theirs).sum())
