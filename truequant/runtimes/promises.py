"""What a file promises on machines of other kinds, found from the program alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch

from truequant import numerics
from truequant.integer import IntegerProgram, float_sums
from truequant.integer.nodes import FLOAT_LINEARS, Add, AveragePool, Conv, Edge, Island, Linear, MatMul
from truequant.runtimes.onnx.writer import dynamic_layout
from truequant.runtimes.saturation import openvino_saturating, saturating_layers
from truequant.schemes import ONNXRUNTIME, TARGETS, Target


def promises(
    program: IntegerProgram, runtimes: Sequence[str] = ("onnxruntime",), different: Collection[str] = ()
) -> tuple[str, ...]:
    """For each runtime what its file promises, and a sentence for each kind of machine where it might not hold.

    Runtimes that promise nothing have no line. different: those that computed other codes from equal ones on this machine, so
    that nothing can be promised.
    """
    target = TARGETS.get(program.target, ONNXRUNTIME)
    if not target.runs_here:
        return (f"target '{target.name}': no runtime of it runs here, so that its codes are UNVERIFIED",)
    between = " between float islands" if any(isinstance(node, Island) for node in program.nodes) else ""
    lines = []
    for name in (name for name in runtimes if name in _EXCEPTIONS):
        exceptions = [*_EXCEPTIONS[name](program, target), *_in_float(program)]
        if name in different:
            lines.append(f"{name}: nothing is promised, since it computes other codes from equal ones on this machine")
        elif exceptions:
            lines.append(f"{name}, promised{between}: the same codes on every x86 CPU but")
        else:
            lines.append(
                f"{name}, promised{between}: the same codes on every x86 CPU, with VNNI or without, with FMA or without"
            )
        lines += [f"{name}, {line}" for line in exceptions]
    return tuple(lines)


def _in_onnxruntime(program: IntegerProgram, target: Target) -> Iterator[str]:
    saturating = saturating_layers(program)
    if saturating and not target.saturating_pairs:
        yield _saturate(saturating)
    adds = {} if target.without_fma else adds_that_need_fma(program)
    if adds:
        pairs = sum(adds.values())
        all_pairs = 65_536 * len(adds)
        yield f"x86 without FMA: {pairs} of {all_pairs:,} pairs of codes add up to another code in {_names(list(adds))}"
    if sums := float_sums(program):
        yield f"any machine: sums over 16-bit codes run in float32, graded but never EXACT, in {_names(list(sums))}"


def _in_openvino(program: IntegerProgram, target: Target) -> Iterator[str]:
    """Its adds are tables, and it takes no codes of 16 bits."""
    saturating = openvino_saturating(program)
    if saturating and not target.saturating_pairs:
        yield _saturate(saturating)
    if averages := [node.output for node in program.nodes if isinstance(node, AveragePool)]:
        yield f"any machine: averages over uneven windows are its own float32 sums, in {_names(averages)}"
    if large := sums_beyond_float32(program):
        yield f"any machine: sums at or above 2^24, which not every input has, are rounded twice in {_names(large)}"


_EXCEPTIONS: dict[str, Callable[[IntegerProgram, Target], Iterator[str]]] = {
    "onnxruntime": _in_onnxruntime, "openvino": _in_openvino,
}  # fmt: skip
"""By runtime: where its codes might be others than the program's."""


def _in_float(program: IntegerProgram) -> list[str]:
    floats = [node.output for node in program.nodes if isinstance(node, FLOAT_LINEARS)]
    if not floats:
        return []
    return [f"wherever it runs: the float sums of {_names(floats)}, which every runtime rounds in its own way"]


def _saturate(names: list[str]) -> str:
    return f"x86 with AVX2, without VNNI: other codes, because pairs saturate in {_names(names)}; target 'onnxruntime' is exact"


def sums_beyond_float32(program: IntegerProgram) -> list[str]:
    """What adds its bias to a sum that float32 may have rounded: layers by their codes, products by the length of a row."""
    edges, found = program.edges, []
    shapes = dynamic_layout(program)[0] if any(isinstance(node, MatMul) for node in program.nodes) else {}
    for node in program.nodes:
        bound = 0.0
        if isinstance(node, (Conv, Linear)):
            x = edges[node.input]
            zero = torch.tensor(x.zero_point)
            bound = float(numerics.accumulator_bound(node.weight, node.bias, zero, x.qmin, x.qmax))
        elif isinstance(node, MatMul):
            length = shapes[node.left][-1]
            bound = math.inf if length is None else length * math.prod(_reach(edges[name]) for name in (node.left, node.right))
        if bound >= numerics.FLOAT32_EXACT:
            found.append(node.output)
    return found


def _reach(edge: Edge) -> int:
    return max(edge.zero_point - edge.qmin, edge.qmax - edge.zero_point)


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
