"""Lowering of calls of registered ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode

from truequant.errors import ConversionError
from truequant.fake import RuntimeSite, table_of
from truequant.integer import nodes as program_nodes
from truequant.planning import decode_call, registered_op, renumbered
from truequant.planning.float_ops import REGISTERED
from truequant.transform.lowering import Codes, Floats, Lowered, Lowering

CALL = torch.ops.truequant.registered.default


class MovementSteps:
    """The movements that a program has, on one tensor of codes or values. Each returns the name of what it made."""

    def __init__(self, low: Lowering, source: Codes | Floats, name: str) -> None:
        self._low, self._source, self._name = low, source, name

    def _emit(self, kind: Any, x: str | tuple[str, ...], *fields: Any) -> str:
        output = self._low.unique(f"{self._name}@{kind.__name__.lower()}")
        self._low.moved(output, self._source)
        self._low.emit(kind(x, output, *fields))
        return output

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """`shape`: 0 keeps that axis, one -1 is what remains."""
        return self._emit(program_nodes.Reshape, x, tuple(shape))

    def transpose(self, x: str, permutation: Sequence[int]) -> str:
        """Axis i of the result is axis `permutation[i]`."""
        return self._emit(program_nodes.Transpose, x, tuple(permutation))

    def slice(self, x: str, axis: int, begin: int, end: int | None = None, step: int = 1) -> str:
        """`x[begin:end:step]` along `axis`."""
        return self._emit(program_nodes.Slice, x, axis, begin, end, step)

    def take(self, x: str, axis: int, indices: Sequence[int]) -> str:
        """The places `indices` along `axis`."""
        return self._emit(program_nodes.Take, x, axis, tuple(indices))

    def upsample(self, x: str, factors: Sequence[int]) -> str:
        """Each place repeated along the last axes."""
        return self._emit(program_nodes.Upsample, x, tuple(factors))

    def depth_to_space(self, x: str, block: Sequence[int]) -> str:
        """Channels move into space, the first axis of `block` slowest."""
        return self._emit(program_nodes.DepthToSpace, x, tuple(block))

    def concat(self, parts: Sequence[str], axis: int) -> str:
        """Parts made from the same tensor, joined."""
        return self._emit(program_nodes.Concat, tuple(parts), axis)


def table(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """The result of each code."""
    name, args, kwargs = _call(low, node)
    op = registered_op(name)
    assert op is not None
    source = args[0]
    if not isinstance(source, Codes):
        raise ConversionError(f"'{site.plan.name}' reads a value that is not quantized")
    output, _, _ = low.result(site)
    with torch.no_grad():
        entries = table_of(site, op.function, args, kwargs)
    low.table(source, output, entries, name)
    return output


def movement(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    """What the op's own `lower` makes of it; a float island where the op is one."""
    op_name, args, kwargs = _call(low, node)
    op = registered_op(op_name)
    assert op is not None
    if op.lower is None:
        return island(low, node, name)
    args[0] = source.name
    result = op.lower(MovementSteps(low, source, name), *args, **kwargs)
    last = low.nodes[-1]
    if last.output != result or result == source.name:
        raise ConversionError(
            f"'{name}': lower= of '{op_name}' does not return its last step", got=repr(result)[:80], expected=repr(last.output)
        )
    low.nodes[-1] = last.renamed(name)
    low.edges.pop(result, None)
    return low.moved(name, source)


def island(low: Lowering, node: GraphNode, name: str) -> Lowered:
    """A named float island: inputs first, then what is stored."""
    tensors, op_name, text = _parts(node)
    lowered = [low.values.get(t) for t in tensors]
    inputs = [low.floats(v).name for v in lowered if isinstance(v, (Codes, Floats))]
    stored = [v.detach().clone().contiguous() for v in lowered if isinstance(v, Tensor)]
    if len(inputs) + len(stored) != len(tensors):
        raise ConversionError(f"'{name}': '{op_name}' reads what the forward computes from nothing quantized")
    is_input = [isinstance(v, (Codes, Floats)) for v in lowered]
    order = [is_input[:i].count(True) if own else len(inputs) + is_input[:i].count(False) for i, own in enumerate(is_input)]
    text = renumbered(text, order)
    low.emit(program_nodes.Island(tuple(inputs), name, f"{REGISTERED}{op_name}", (text,), (), tuple(stored)))
    return Floats(name)


def _parts(node: GraphNode) -> tuple[list[GraphNode], str, str]:
    tensors, name, text = node.args
    return list(tensors), str(name), str(text)  # type: ignore[arg-type]


def _call(low: Lowering, node: GraphNode) -> tuple[str, list[Any], dict[str, Any]]:
    """Name and arguments of a call, tensors as they were lowered."""
    tensors, name, text = _parts(node)
    args, kwargs = decode_call(text, [low.values.get(t) for t in tensors])
    return name, args, kwargs
