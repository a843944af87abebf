"""Lowering of ops that take what they read by constant places: codes again, in another order, or some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode

from truequant.integer import nodes as program_nodes
from truequant.integer.nodes.movement import PadMode
from truequant.transform.lowering import Codes, Floats, Lowered, Lowering, Unmovable

aten = torch.ops.aten
_MODES: dict[str, PadMode] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def arguments(node: GraphNode, *names: str) -> dict[str, Any]:
    """Arguments by name, the tensor that is moved left out."""
    return dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)


def fixed(size: Any, name: str) -> int:
    if not isinstance(size, int):
        raise Unmovable
    return size


def _taken(low: Lowering, source: Codes | Floats, name: str, axis: int, indices: list[int]) -> Codes | Floats:
    output = low.moved(name, source)
    low.emit(program_nodes.Take(source.name, name, axis, tuple(indices)))
    return output


def reordered(low: Lowering, source: Codes | Floats, name: str, orders: dict[int, list[int]]) -> Codes | Floats:
    """Axis by axis, the last under `name`."""
    for position, (axis, indices) in enumerate(orders.items(), 1):
        step = name if position == len(orders) else low.unique(f"{name}@axis{axis}")
        source = _taken(low, source, step, axis, indices)
    return source


def take(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    """Flip, roll, expand, index: codes by constant indices, axis by axis."""
    before, after = node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape
    rank, orders = len(before), dict[int, list[int]]()
    target = node.target
    if target is aten.flip.default:
        orders = {d % rank: list(range(fixed(before[d], name)))[::-1] for d in arguments(node, "dims")["dims"]}
    elif target is aten.roll.default:
        found = arguments(node, "shifts", "dims")
        if not found.get("dims"):
            raise Unmovable
        for shift, dim in zip(found["shifts"], found["dims"], strict=True):
            n = fixed(before[dim], name)
            orders[dim % rank] = [(i - shift) % n for i in range(n)]
    elif target is aten.channel_shuffle.default:
        groups, n = int(arguments(node, "groups")["groups"]), fixed(before[1], name)
        orders[1] = torch.arange(n).reshape(groups, n // groups).t().flatten().tolist()
    elif target in (aten.expand.default, aten.expand_as.default):
        if rank != len(after):
            raise Unmovable
        orders = {i: [0] * fixed(m, name) for i, (n, m) in enumerate(zip(before, after, strict=True)) if n == 1 and m != 1}
    elif target in (aten.repeat.default, aten.repeat_interleave.self_int):
        orders = _repetitions(node, before)
        if len(after) != rank or not all(isinstance(before[axis], int) for axis in orders):
            return low.tables.island(low, node, name)
    else:
        found_order = _indices(low, node, rank)
        if found_order is None:  # by tensors that depend on the inputs, or several at once: values that are gathered
            return low.tables.island(low, node, name)
        orders = found_order
    return reordered(low, source, name, orders)


def _repetitions(node: GraphNode, before: Sequence[Any]) -> dict[int, list[int]]:
    """Places by axis, of `repeat` (all of an axis again) and `repeat_interleave` (each place again); none if dynamic."""
    if node.target is aten.repeat.default:
        times = arguments(node, "repeats")["repeats"][-len(before) :]
        return {
            axis: list(range(n)) * k if isinstance(n, int) else []
            for axis, (n, k) in enumerate(zip(before, times, strict=True))
            if k != 1
        }
    found = arguments(node, "repeats", "dim")
    axis = int(found["dim"] or 0) % len(before)
    n = before[axis]
    return {axis: [i // int(found["repeats"]) for i in range(n * int(found["repeats"]))] if isinstance(n, int) else []}


def _indices(low: Lowering, node: GraphNode, rank: int) -> dict[int, list[int]] | None:
    """The axis and places of `index_select` or `x[:, [2, 0]]`; None where they are no constant list."""
    if node.target is aten.index_select.default:
        found = arguments(node, "dim", "index")
        pairs = [(int(found["dim"]) % rank, low.values.get(found["index"]))]
    else:
        pairs = [
            (i, low.values.get(index)) for i, index in enumerate(arguments(node, "indices")["indices"]) if index is not None
        ]
    axis, index = pairs[0]
    size = node.all_input_nodes[0].meta["val"].shape[axis]
    if len(pairs) > 1 or not isinstance(index, Tensor) or index.dim() != 1 or index.dtype == torch.bool:
        return None
    if not isinstance(size, int):
        return None
    return {axis: [int(i) % size if i < 0 else int(i) for i in index.tolist()]}


def upsample(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    """Nearest neighbour: whole factors repeat codes, others take them by index."""
    before, after = node.all_input_nodes[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    found = arguments(node, "output_size", "scale_factors")
    factors = found.get("scale_factors")
    if factors is None and all(isinstance(n, int) and isinstance(m, int) for n, m in zip(before, after, strict=True)):
        factors = [m / n for n, m in zip(before, after, strict=True)]
    if factors is not None and all(float(f).is_integer() for f in factors):
        output = low.moved(name, source)
        low.emit(program_nodes.Upsample(source.name, name, tuple(int(f) for f in factors)))
        return output
    for axis, (n, m) in enumerate(zip(before, after, strict=True)):
        if not (isinstance(n, int) and isinstance(m, int)):
            raise Unmovable
        places = torch.arange(float(n)).reshape(1, 1, n)
        given = None if found.get("scale_factors") is None else float(found["scale_factors"][axis])
        size = {"size": m} if given is None else {"scale_factor": given}
        indices = torch.nn.functional.interpolate(places, mode="nearest", **size).flatten().long().tolist()
        last = axis == len(before) - 1
        source = _taken(low, source, name if last else low.unique(f"{name}@axis{axis}"), axis + 2, indices)
    return source


def repeated(low: Lowering, node: GraphNode, name: str, source: Codes | Floats, flat: list[int], mode: str) -> Lowered:
    """Padding by reflection, replication or wrapping; where it takes places away, codes taken again, axis by axis."""
    before = node.all_input_nodes[0].meta["val"].shape
    if min(flat) >= 0:
        output = low.moved(name, source)
        pairs = tuple((flat[i], flat[i + 1]) for i in range(0, len(flat), 2))[::-1]
        low.emit(program_nodes.PadRepeated(source.name, name, pairs, _MODES[mode]))
        return output
    orders = {}
    for i in range(0, len(flat), 2):
        if flat[i] or flat[i + 1]:
            axis = len(before) - 1 - i // 2
            places = torch.arange(float(fixed(before[axis], name))).reshape(1, 1, -1)
            orders[axis] = torch.nn.functional.pad(places, (flat[i], flat[i + 1]), mode=mode).flatten().long().tolist()
    return reordered(low, source, name, orders)
