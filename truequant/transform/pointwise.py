"""Lowering of ops that compute each number alone, from values to a value."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node as GraphNode

from truequant.integer import nodes as program_nodes
from truequant.numerics import Pointwise
from truequant.transform.constants import values
from truequant.transform.lowering import Floats, Lowered, Lowering

aten = torch.ops.aten
_FUNCTIONS: dict[Any, Pointwise] = {
    aten.add.Tensor: "add", aten.sub.Tensor: "sub", aten.mul.Tensor: "mul", aten.div.Tensor: "div", aten.neg.default: "neg",
}  # fmt: skip


def _operation(low: Lowering, node: GraphNode, name: str) -> Lowered:
    operands = [value.name for value in values(low, name, node.args, repeats=False)]
    low.emit(program_nodes.Pointwise(_FUNCTIONS[node.target], tuple(operands), name))
    return Floats(name)


POINTWISE = dict.fromkeys(_FUNCTIONS, _operation)
