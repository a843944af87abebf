"""Lowering of linear interpolation: borders repeated, a depthwise convolution for each phase, channels into space."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node as GraphNode

from truequant.errors import ConversionError
from truequant.fake import RuntimeSite, interpolation_weights
from truequant.integer import nodes as program_nodes
from truequant.planning import whole
from truequant.transform.lowering import Codes, Lowered, Lowering
from truequant.transform.subpixel import into_space


def resize(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """One site of the plan as PadRepeated, Conv, Concat and DepthToSpace."""
    source = low.input_codes(node, site)
    output, lowest, highest = low.result(site)
    if not isinstance(output, Codes):
        raise ConversionError(
            f"'{site.plan.name}': an interpolation without a quantizer behind it", fix="give it an output scheme"
        )
    factors = _factors(node, site.plan.name)
    n, channels = len(factors), int(node.meta["val"].shape[1])
    source, inner = low.codes(low.unique(f"{output.name}@bordered"), source.grid), source
    low.emit(program_nodes.PadRepeated(inner.name, source.name, ((1, 1),) * n, "edge"))
    weight, scale = interpolation_weights(factors, channels)
    layer = program_nodes.Conv(
        source.name, output.name, weight.to(torch.int8), torch.tensor([scale]),
        torch.zeros(weight.shape[0], dtype=torch.int32), (1,) * n, ((0, 0),) * n, (1,) * n, channels, lowest, highest,
    )  # fmt: skip
    return into_space(low, output, layer, factors)


def _factors(node: GraphNode, name: str) -> tuple[int, ...]:
    given: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("scale_factors")
    before, after = node.all_input_nodes[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    if given is None and all(isinstance(m, int) for m in (*before, *after)):
        given = [wanted / length for wanted, length in zip(after, before, strict=True)]
    factors = None if given is None else whole([float(f) for f in given])
    if factors is None:
        raise ConversionError(f"'{name}': a dynamic size changes by no whole factor", got=f"{tuple(before)} -> {tuple(after)}")
    return factors
