"""Lowering of linear layers that read floats."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node as GraphNode

from truequant.fake import RuntimeSite, integer_weight, ready
from truequant.integer import nodes as program_nodes
from truequant.transform.lowering import Floats, Lowered, Lowering


def float_linear(low: Lowering, node: GraphNode, site: RuntimeSite, weight: Tensor, bias: Tensor | None) -> Lowered:
    """A node whose weight is integers; its input is a value, of codes those that they stand for."""
    with torch.no_grad():
        ready(site, weight)
        codes, scale = integer_weight(site, weight)
    source = low.floats(low.values[node.all_input_nodes[0]])
    tensors = codes.to(torch.int8).contiguous(), scale.contiguous(), None if bias is None else bias.detach().float().clone()
    name = site.plan.name
    if site.plan.dynamic is None:
        low.emit(program_nodes.WeightOnlyLinear(source.name, name, *tensors))
    else:
        low.emit(program_nodes.DynamicLinear(source.name, name, *tensors, site.plan.dynamic.qmax))
    return Floats(name)
