"""Lowering of linear interpolation: borders repeated, a depthwise convolution for all phases, channels into space."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node as GraphNode

from truequant.errors import ConversionError
from truequant.fake import RuntimeSite, interpolation_weights
from truequant.integer import nodes as program_nodes
from truequant.planning import whole
from truequant.transform.lowering import Codes, Lowered, Lowering


def resize(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """One site of the plan as Slice, Concat, Conv and DepthToSpace."""
    source = low.input_codes(node, site)
    output, lowest, highest = low.result(site)
    if not isinstance(output, Codes):
        raise ConversionError(
            f"'{site.plan.name}': an interpolation without a quantizer behind it", fix="give it an output scheme"
        )
    factors = _factors(node, site.plan.name)
    n, channels = len(factors), int(node.meta["val"].shape[1])
    for axis in range(2, n + 2):
        source = _bordered(low, source, output.name, axis)
    weight, scale = interpolation_weights(factors, channels)
    phases = low.codes(low.unique(f"{output.name}@phases"), output.grid)
    low.emit(
        program_nodes.Conv(
            source.name, phases.name, weight.to(torch.int8), torch.tensor([scale]),
            torch.zeros(weight.shape[0], dtype=torch.int32), (1,) * n, ((0, 0),) * n, (1,) * n, channels, lowest, highest,
        )
    )  # fmt: skip
    low.emit(program_nodes.DepthToSpace(phases.name, output.name, factors))
    return output


def _factors(node: GraphNode, name: str) -> tuple[int, ...]:
    given: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("scale_factors")
    before, after = node.all_input_nodes[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    if given is None and all(isinstance(m, int) for m in (*before, *after)):
        given = [wanted / length for wanted, length in zip(after, before, strict=True)]
    factors = None if given is None else whole([float(f) for f in given])
    if factors is None:
        raise ConversionError(f"'{name}': a dynamic size changes by no whole factor", got=f"{tuple(before)} -> {tuple(after)}")
    return factors


def _bordered(low: Lowering, source: Codes, name: str, axis: int) -> Codes:
    """The first and the last place of an axis twice."""
    parts = []
    for part, begin, end in (("first", 0, 1), ("last", -1, None)):
        made = low.codes(low.unique(f"{name}@{part}{axis}"), source.grid)
        low.emit(program_nodes.Slice(source.name, made.name, axis, begin, end, 1))
        parts.append(made.name)
    joined = low.codes(low.unique(f"{name}@bordered{axis}"), source.grid)
    low.emit(program_nodes.Concat((parts[0], source.name, parts[1]), joined.name, axis))
    return joined
