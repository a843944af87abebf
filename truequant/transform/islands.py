"""Lowering of what the plan left in float: torch's op on values, its weights stored beside it."""

from __future__ import annotations

import json
import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from truequant.errors import ConversionError
from truequant.integer.nodes import Island
from truequant.planning import is_loss
from truequant.planning.float_ops import ISLAND_OPS, MADE_AS
from truequant.transform.lowering import Codes, Floats, Lowered, Lowering, Several


def island(low: Lowering, node: GraphNode, name: str) -> Lowered:
    """A float op. `ConversionError` where the program has no such op or an argument is computed in the forward."""
    target: Any = node.target
    op, given, named = str(target).removeprefix("aten."), node.args, dict(node.kwargs)
    if op in MADE_AS:  # a tensor gives its dtype, and nothing else
        op, given, named = MADE_AS[op], given[1:], named | {"dtype": node.meta["val"].dtype}
    if op not in ISLAND_OPS:
        raise ConversionError(
            f"'{name}': {target} has no place in an integer program",
            got=str(target),
            expected="an op with an integer form, or a float op of truequant.planning.float_ops",
            fix="prepare with example inputs without labels: a program computes no loss"
            if is_loss(op.partition(".")[0])
            else "the prepared model still trains and evaluates as it is; print(plan) names what stays float and why",
        )
    values = node.meta.get("val")
    if any(free_unbacked_symbols(n) for v in (values if isinstance(values, (tuple, list)) else [values])
           if isinstance(v, Tensor) for n in v.shape):  # fmt: skip
        raise ConversionError(
            f"'{name}': {target} returns as many elements as values say",
            got=str(target),
            expected="shapes that follow from the shapes of the inputs",
            fix="torch.where(mask, x, 0), topk or a fixed number of places keep the shape",
        )
    part = None
    found = _Arguments(low, name)
    arguments = tuple(json.dumps(found.encode(a)) for a in given)
    options = tuple(json.dumps([k, found.encode(v)]) for k, v in named.items() if k not in _PLACES)
    island = Island(tuple(found.inputs), name, op, arguments, options, tuple(found.tensors), part)
    if isinstance(node.meta.get("val"), (tuple, list)):
        return Several(island)
    low.emit(island)
    return Floats(name)


def cast(low: Lowering, node: GraphNode, name: str) -> Lowered:
    """A change of dtype, however it was written."""
    found = _Arguments(low, name)
    arguments = (json.dumps(found.encode(node.args[0])), json.dumps(found.encode(node.meta["val"].dtype)))
    low.emit(Island(tuple(found.inputs), name, "to.dtype", arguments, (), tuple(found.tensors)))
    return Floats(name)


def narrowed(low: Lowering, name: str) -> Floats:
    """An input of float64 in float32, as evaluation takes it."""
    output = low.unique(name.removesuffix(".float") + ".single")
    low.emit(Island((name,), output, "to.dtype", (json.dumps({"input": 0}), json.dumps({"dtype": "float32"})), (), ()))
    return Floats(output)


def constant(low: Lowering, value: Tensor, beside: str) -> Floats:
    """A stored tensor as a value, which the model returns; it lies where the input `beside` does."""
    name = low.unique("@constant")
    found = _Arguments(low, name)
    arguments = (json.dumps({"tensor": 0}), json.dumps(found.encode(value.dtype)))
    low.emit(Island((beside,), name, "to.dtype", arguments, (), (value.detach().clone().contiguous(),)))
    return Floats(name)


_PLACES = frozenset(("device", "layout", "pin_memory", "memory_format", "non_blocking"))


_SIZES: dict[Any, str] = {
    operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.floordiv: "floordiv",
}  # fmt: skip
"""Arithmetic on sizes."""


class _Arguments:
    """Inputs and stored tensors of an island, in the order in which its arguments name them."""

    def __init__(self, low: Lowering, name: str) -> None:
        self.low, self.name = low, name
        self.inputs: list[str] = []
        self.tensors: list[Tensor] = []

    def encode(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self.encode(v) for v in value]
        if isinstance(value, float) and not math.isfinite(value):
            return {"number": str(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, GraphNode):
            return self._node(value)
        raise ConversionError(f"'{self.name}': an argument that a program cannot hold", got=repr(value)[:120])

    def _node(self, node: GraphNode) -> dict[str, Any]:
        lowered = self.low.values.get(node)
        if isinstance(lowered, (Codes, Floats)):
            return {"input": self._input(self.low.floats(lowered).name)}
        if isinstance(lowered, Tensor):
            stored = self.low.stored.of(lowered)
            if stored is not None:
                self.tensors += [stored.codes, stored.scale]
                return {"codes": [len(self.tensors) - 2, len(self.tensors) - 1]}
            self.tensors.append(lowered.detach().clone().contiguous())
            return {"tensor": len(self.tensors) - 1}
        if node.target is torch.ops.aten.sym_size.int:
            source: Any = node.args[0]
            measured = self.low.values.get(source)
            if isinstance(measured, (Codes, Floats)):
                return {"size": [self._input(self.low.floats(measured).name), node.args[1]]}
        kind = _SIZES.get(node.target)
        if kind is not None:
            return {"arithmetic": [kind, *(self.encode(a) for a in node.args)]}
        raise ConversionError(
            f"'{self.name}': reads '{node.name}', which the forward computes from nothing quantized",
            got=str(node.target),
            expected="inputs, parameters, buffers and sizes",
        )

    def _input(self, name: str) -> int:
        if name not in self.inputs:
            self.inputs.append(name)
        return self.inputs.index(name)
