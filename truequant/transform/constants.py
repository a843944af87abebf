"""Lowering of constants that an op joins to an activation: their codes are stored, or their values where it reads values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode
from torch.utils import _pytree as pytree

from truequant.fake import FakeQuantize, RuntimeSite
from truequant.integer import nodes as program_nodes
from truequant.integer.storage import storage
from truequant.transform.lowering import CASTS, Codes, Floats, Lowered, Lowering

aten = torch.ops.aten
_ALONG_A_BATCH = frozenset((
    *CASTS, aten.expand.default, aten.repeat.default, aten.zeros.default, aten.ones.default, aten.full.default,
    aten.embedding.default, aten.clone.default, aten.alias.default, aten.dropout.default,
))  # fmt: skip
"""What gives each sample of a batch the same, where it reads such tensors and the size of the batch."""


def constants(low: Lowering, node: GraphNode, site: RuntimeSite, operands: Sequence[GraphNode]) -> list[Lowered]:
    """What an op reads, with codes for its constants. They are repeated along a batch only where no operand broadcasts."""
    found = [low.values[operand] for operand in operands]
    beside = next((o for o, value in zip(operands, found, strict=True) if isinstance(value, Codes)), None)
    for place in site.plan.constants:
        grid = site.reads[place]
        assert grid is not None
        name = low.unique(f"{site.plan.name}@constant")
        found[place] = _stored(low, operands[place], name, grid, beside, repeats=site.plan.action == "concat")
    return found


def _stored(
    low: Lowering, operand: GraphNode, name: str, grid: FakeQuantize, beside: GraphNode | None, *, repeats: bool
) -> Lowered:
    """The codes of one constant. beside: another operand, of the same batch."""
    value, like = _for_a_batch(low, operand, beside)
    if isinstance(value, Floats):  # its size follows the inputs: it is computed, and quantized then
        edge = low.codes(name, grid)
        low.emit(program_nodes.Quantize(value.name, edge.name))
        return edge
    if not isinstance(value, Tensor):
        return value
    edge = low.codes(name, grid)
    with torch.no_grad():
        codes = grid.codes(value.float()).to(storage(low.edges[name])).contiguous()
    low.emit(program_nodes.Constant(name, codes, like.name if repeats and isinstance(like, Codes) else None))
    return edge


def values(low: Lowering, name: str, operands: Sequence[Any], *, repeats: bool) -> list[Floats]:
    """What an op reads, as values; a number or tensor that is no activation is stored. repeats: along a batch, too."""
    return [_value(low, name, operand, operands, repeats=repeats) for operand in operands]


def _value(low: Lowering, name: str, operand: Any, operands: Sequence[Any], *, repeats: bool) -> Floats:
    value: Lowered
    if isinstance(operand, Floats):
        return operand
    if isinstance(operand, GraphNode):
        others = (o for o in operands if isinstance(o, GraphNode) and o is not operand)
        value, like = _for_a_batch(low, operand, next((o for o in others if isinstance(low.values[o], (Codes, Floats))), None))
    else:
        value, like = torch.tensor(operand, dtype=torch.float32), None
    if not isinstance(value, Tensor):
        return low.floats(value)
    output = low.unique(f"{name}@constant")
    along = low.floats(like).name if repeats and like is not None else None
    low.emit(program_nodes.Constant(output, value.detach().float().clone().contiguous(), along))
    return Floats(output)


def _for_a_batch(low: Lowering, operand: GraphNode, beside: GraphNode | None) -> tuple[Lowered, Lowered]:
    """What an operand was lowered to; of one that holds the same for each sample, that of a batch of one, and the other
    operand `beside`, along whose batch it may be repeated.
    """
    value = low.values[operand]
    one = _of_one_sample(low, operand, beside) if isinstance(value, Floats) and beside is not None else None
    return (value, None) if one is None or beside is None else (one, low.values[beside])


def _of_one_sample(low: Lowering, operand: GraphNode, beside: GraphNode) -> Tensor | None:
    """What a batch of one has, where all samples have the same, and as many as the operand `beside`; else None."""
    batch, other = operand.meta["val"].shape[:1], beside.meta["val"].shape[:1]
    if not batch or operand.meta["val"].dim() != beside.meta["val"].dim() or any(isinstance(n, int) for n in (*batch, *other)):
        return None
    (size,), (expected,) = batch, other
    return _evaluated(low, operand, size.node.expr) if size.node.expr == expected.node.expr else None


def _evaluated(low: Lowering, node: GraphNode, batch: Any) -> Tensor | None:
    """A tensor that is made of constants and the size of a batch, for a batch of one; None where anything else is in it."""
    known = low.values.get(node)
    if isinstance(known, Tensor):
        return known
    if node.target is torch.ops.truequant.mark.default:
        source = node.args[0]
        return _evaluated(low, source, batch) if isinstance(source, GraphNode) else None
    if node.target not in _ALONG_A_BATCH:
        return None
    leaves, structure = pytree.tree_flatten((node.args, dict(node.kwargs)))
    for place, leaf in enumerate(leaves):
        if not isinstance(leaf, GraphNode):
            continue
        held = leaf.meta["val"]
        if isinstance(held, Tensor):
            leaves[place] = _evaluated(low, leaf, batch)
            if leaves[place] is None:
                return None
        elif isinstance(held, torch.SymInt) and held.node.expr == batch:
            leaves[place] = 1
        else:
            return None
    args, kwargs = pytree.tree_unflatten(leaves, structure)
    target: Any = node.target
    with torch.no_grad():
        result = target(*args, **kwargs)
    rest = node.meta["val"].shape[1:]
    fits = isinstance(result, Tensor) and all(isinstance(n, int) for n in rest) and tuple(result.shape) == (1, *rest)
    return result if fits else None
