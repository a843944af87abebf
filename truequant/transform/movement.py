"""Lowering of ops that only move what they read: codes, which keep scale and zero point, or values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode

from truequant.errors import ConversionError
from truequant.integer import nodes as program_nodes
from truequant.transform.lowering import Codes, Floats, Lowered, Lowering, Parts, sizes

aten = torch.ops.aten
Move = Callable[[Lowering, GraphNode, str, Any], Lowered]


def _arguments(node: GraphNode, *names: str) -> dict[str, Any]:
    """Arguments by name, the tensor that is moved left out."""
    return dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)


def _reshape(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    """Any change of shape: dynamic axes that stay where they are become 0, one that is computed becomes -1."""
    before, after = node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape
    shape: list[int] = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            shape.append(size)
        elif axis < len(before) and not isinstance(before[axis], int) and before[axis].node.expr == size.node.expr:
            shape.append(0)
        else:
            shape.append(-1)
    if shape.count(-1) > 1:
        raise ConversionError(
            f"'{name}': a reshape computes two axes from dynamic sizes",
            got=f"{tuple(before)} -> {tuple(after)}",
            expected="one",
        )
    output = low.moved(name, source)
    low.emit(program_nodes.Reshape(source.name, name, tuple(shape)))
    return output


def _movedim(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    rank = node.meta["val"].dim()
    found = _arguments(node, "source", "destination")
    ends = [[v] if isinstance(v, int) else list(v) for v in (found["source"], found["destination"])]
    taken = {d % rank: s % rank for s, d in zip(*ends, strict=True)}
    rest = iter(a for a in range(rank) if a not in taken.values())
    order = [taken[i] if i in taken else next(rest) for i in range(rank)]
    output = low.moved(name, source)
    low.emit(program_nodes.Transpose(source.name, name, tuple(order)))
    return output


def _permute(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    rank = node.meta["val"].dim()
    order = list(range(rank))
    if node.target is aten.permute.default:
        order = [int(a) % rank for a in _arguments(node, "dims")["dims"]]
    else:
        found = _arguments(node, "dim0", "dim1") if node.target is aten.transpose.int else {"dim0": -2, "dim1": -1}
        a, b = int(found["dim0"]) % rank, int(found["dim1"]) % rank
        order[a], order[b] = order[b], order[a]
    output = low.moved(name, source)
    low.emit(program_nodes.Transpose(source.name, name, tuple(order)))
    return output


def _max_pool(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    n = int(str(node.target).split("pool")[1][0])
    found = _arguments(node, "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    kernel = sizes(found["kernel_size"], n)
    stride = found.get("stride")
    output = low.moved(name, source)
    low.emit(
        program_nodes.MaxPool(
            source.name,
            name,
            kernel,
            kernel if stride in (None, []) else sizes(stride, n),
            sizes(found.get("padding", 0), n),
            sizes(found.get("dilation", 1), n),
            bool(found.get("ceil_mode", False)),
        )
    )
    return output


def _concat(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
    parts = [low.values[t] for t in tensors]
    if not all(isinstance(p, Codes) and isinstance(source, Codes) and p.grid is source.grid for p in parts):
        parts = [low.floats(p) for p in parts]
        source = Floats(name)
    rank = node.meta["val"].dim()
    axis = int(_arguments(node, "dim").get("dim", 0)) % rank
    if node.target is aten.stack.default:
        shape = list(node.meta["val"].shape)
        shape[axis] = 1
        parts = [_widened(low, p, low.unique(f"{name}@part"), axis, shape) for p in parts if isinstance(p, (Codes, Floats))]
    output = low.moved(name, source)
    low.emit(program_nodes.Concat(tuple(p.name for p in parts if isinstance(p, (Codes, Floats))), name, axis))
    return output


def _widened(low: Lowering, part: Codes | Floats, name: str, axis: int, shape: list[Any]) -> Codes | Floats:
    """A part of a stack with the new axis."""
    output = low.moved(name, part)
    sizes_ = tuple(n if isinstance(n, int) else 0 if i < axis else -1 for i, n in enumerate(shape))
    low.emit(program_nodes.Reshape(part.name, name, sizes_))
    return output


def _upsample(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    """Nearest neighbour: whole factors repeat codes, others take them by index."""
    before, after = node.all_input_nodes[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    found = _arguments(node, "output_size", "scale_factors")
    factors = found.get("scale_factors")
    if factors is None and all(isinstance(n, int) and isinstance(m, int) for n, m in zip(before, after, strict=True)):
        factors = [m / n for n, m in zip(before, after, strict=True)]
    if factors is not None and all(float(f).is_integer() for f in factors):
        output = low.moved(name, source)
        low.emit(program_nodes.Upsample(source.name, name, tuple(int(f) for f in factors)))
        return output
    for axis, (n, m) in enumerate(zip(before, after, strict=True)):
        if not (isinstance(n, int) and isinstance(m, int)):
            raise ConversionError(f"'{name}': a dynamic size changes by no whole factor", got=f"{n} -> {m}")
        places = torch.arange(float(n)).reshape(1, 1, n)
        given = None if found.get("scale_factors") is None else float(found["scale_factors"][axis])
        size = {"size": m} if given is None else {"scale_factor": given}
        indices = torch.nn.functional.interpolate(places, mode="nearest", **size).flatten().long().tolist()
        last = axis == len(before) - 1
        source = _taken(low, source, name if last else low.unique(f"{name}@axis{axis}"), axis + 2, indices)
    return source


def _taken(low: Lowering, source: Codes | Floats, name: str, axis: int, indices: list[int]) -> Codes | Floats:
    output = low.moved(name, source)
    low.emit(program_nodes.Take(source.name, name, axis, tuple(indices)))
    return output


def _fixed(size: Any, name: str) -> int:
    if not isinstance(size, int):
        raise ConversionError(f"'{name}' reorders a dynamic axis", got=str(size), expected="a fixed size")
    return size


def _take(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    """Flip, roll, expand, index: codes by constant indices, axis by axis."""
    before, after = node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape
    rank, orders = len(before), dict[int, list[int]]()
    target = node.target
    if target is aten.flip.default:
        orders = {d % rank: list(range(_fixed(before[d], name)))[::-1] for d in _arguments(node, "dims")["dims"]}
    elif target is aten.roll.default:
        found = _arguments(node, "shifts", "dims")
        if not found.get("dims"):
            raise ConversionError(f"'{name}' rolls a flattened tensor", expected="dims=…")
        for shift, dim in zip(found["shifts"], found["dims"], strict=True):
            n = _fixed(before[dim], name)
            orders[dim % rank] = [(i - shift) % n for i in range(n)]
    elif target is aten.channel_shuffle.default:
        groups, n = int(_arguments(node, "groups")["groups"]), _fixed(before[1], name)
        orders[1] = torch.arange(n).reshape(groups, n // groups).t().flatten().tolist()
    elif target in (aten.expand.default, aten.expand_as.default):
        if rank != len(after):
            raise ConversionError(f"'{name}' adds axes before the batch", got=f"{tuple(before)} -> {tuple(after)}")
        orders = {i: [0] * _fixed(m, name) for i, (n, m) in enumerate(zip(before, after, strict=True)) if n == 1 and m != 1}
    elif target in (aten.repeat.default, aten.repeat_interleave.self_int):
        orders = _repetitions(node, before)
        if len(after) != rank or not all(isinstance(before[axis], int) for axis in orders):
            return low.tables.island(low, node, name)
    else:
        found_order = _indices(low, node, rank)
        if found_order is None:  # by tensors that depend on the inputs, or several at once: values that are gathered
            return low.tables.island(low, node, name)
        orders = found_order
    if not orders:
        return source
    for position, (axis, indices) in enumerate(orders.items()):
        last = position == len(orders) - 1
        source = _taken(low, source, name if last else low.unique(f"{name}@axis{axis}"), axis, indices)
    return source


def _repetitions(node: GraphNode, before: Sequence[Any]) -> dict[int, list[int]]:
    """Places by axis, of `repeat` (all of an axis again) and `repeat_interleave` (each place again); none if dynamic."""
    if node.target is aten.repeat.default:
        times = _arguments(node, "repeats")["repeats"][-len(before) :]
        return {
            axis: list(range(n)) * k if isinstance(n, int) else []
            for axis, (n, k) in enumerate(zip(before, times, strict=True))
            if k != 1
        }
    found = _arguments(node, "repeats", "dim")
    axis = int(found["dim"] or 0) % len(before)
    n = before[axis]
    return {axis: [i // int(found["repeats"]) for i in range(n * int(found["repeats"]))] if isinstance(n, int) else []}


def _indices(low: Lowering, node: GraphNode, rank: int) -> dict[int, list[int]] | None:
    """The axis and places of `index_select` or `x[:, [2, 0]]`; None where they are no constant list."""
    if node.target is aten.index_select.default:
        found = _arguments(node, "dim", "index")
        pairs = [(int(found["dim"]) % rank, low.values.get(found["index"]))]
    else:
        pairs = [
            (i, low.values.get(index)) for i, index in enumerate(_arguments(node, "indices")["indices"]) if index is not None
        ]
    axis, index = pairs[0]
    size = node.all_input_nodes[0].meta["val"].shape[axis]
    if len(pairs) > 1 or not isinstance(index, Tensor) or index.dim() != 1 or index.dtype == torch.bool:
        return None
    if not isinstance(size, int):
        return None
    return {axis: [int(i) % size if i < 0 else int(i) for i in index.tolist()]}


def _shuffle(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    output = low.moved(name, source)
    factor = int(_arguments(node, "factor")["factor"])
    low.emit(program_nodes.DepthToSpace(source.name, name, (factor, factor)))
    return output


def _unshuffle(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    """Space to depth: split each spatial axis, turn, join."""
    _, channels, height, width = node.all_input_nodes[0].meta["val"].shape
    r, height, width = int(_arguments(node, "factor")["factor"]), _fixed(height, name), _fixed(width, name)
    split, turned = low.moved(low.unique(f"{name}@split"), source), low.moved(low.unique(f"{name}@turned"), source)
    low.emit(program_nodes.Reshape(source.name, split.name, (0, channels, height // r, r, width // r, r)))
    low.emit(program_nodes.Transpose(split.name, turned.name, (0, 1, 3, 5, 2, 4)))
    output = low.moved(name, source)
    low.emit(program_nodes.Reshape(turned.name, name, (0, channels * r * r, height // r, width // r)))
    return output


def _adaptive_max_pool(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    n = int(str(node.target).split("pool")[1][0])
    before = [_fixed(size, name) for size in node.all_input_nodes[0].meta["val"].shape[-n:]]
    window = tuple(a // b for a, b in zip(before, sizes(_arguments(node, "size")["size"], n), strict=True))
    output = low.moved(name, source)
    low.emit(program_nodes.MaxPool(source.name, name, window, window, (0,) * n, (1,) * n, False))
    return output


def _pad(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    found = (
        _arguments(node, "pad", "value")
        if node.target is aten.constant_pad_nd.default
        else _arguments(node, "pad", "mode", "value")
    )
    flat, mode = [int(p) for p in found["pad"]], found.get("mode", "constant")
    if mode != "constant":
        return _repeated(low, node, name, source, flat, mode)
    if found.get("value") not in (None, 0, 0.0):
        raise ConversionError(f"'{name}' pads with something else than real zeros", got=str(found))
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)][::-1]
    output = low.moved(name, source)
    low.emit(program_nodes.Pad(source.name, name, tuple(pairs)))
    return output


def _repeated(low: Lowering, node: GraphNode, name: str, source: Codes | Floats, flat: list[int], mode: str) -> Lowered:
    """Padding by reflection, replication or wrapping: codes taken again, axis by axis."""
    before = node.all_input_nodes[0].meta["val"].shape
    pairs = [(len(before) - 1 - i // 2, flat[i], flat[i + 1]) for i in range(0, len(flat), 2) if flat[i] or flat[i + 1]]
    if not pairs:
        return source
    for position, (axis, begin, end) in enumerate(pairs):
        places = torch.arange(float(_fixed(before[axis], name))).reshape(1, 1, -1)
        indices = torch.nn.functional.pad(places, (begin, end), mode=mode).flatten().long().tolist()
        last = position == len(pairs) - 1
        source = _taken(low, source, name if last else low.unique(f"{name}@axis{axis}"), axis, indices)
    return source


def _slice_of(
    low: Lowering, source: Codes | Floats, name: str, axis: int, begin: int, end: int | None, step: int = 1
) -> Codes | Floats:
    output = low.moved(name, source)
    low.emit(program_nodes.Slice(source.name, name, axis, begin, end, step))
    return output


_LARGE = 2**62


def _slice(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    found = _arguments(node, "dim", "start", "end", "step")
    axis, begin, end = int(found.get("dim", 0)), found.get("start"), found.get("end")
    axis %= node.meta["val"].dim()
    begin, step = 0 if begin is None else begin, found.get("step", 1)
    if begin == 0 and step == 1 and (end is None or (isinstance(end, int) and end >= _LARGE)):
        return source  # x[:]
    if not all(isinstance(v, int) for v in (begin, step)) or not (end is None or isinstance(end, int)):
        raise ConversionError(
            f"'{name}': a slice whose ends depend on sizes", got=f"[{begin}:{end}:{step}]", expected="constants"
        )
    return _slice_of(low, source, name, axis, begin, None if end is None or end >= _LARGE else end, step)


def _narrow(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    found = _arguments(node, "dim", "start", "length")
    begin, length = found["start"], found["length"]
    if not isinstance(begin, int) or not isinstance(length, int):
        raise ConversionError(f"'{name}': a slice whose ends depend on sizes", got=f"{begin}, {length}", expected="constants")
    axis = int(found["dim"]) % node.meta["val"].dim()
    return _slice_of(low, source, name, axis, begin, begin + length if begin + length else None)


def _select(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    found = _arguments(node, "dim", "index")
    rank = node.all_input_nodes[0].meta["val"].dim()
    axis, index = int(found["dim"]) % rank, int(found["index"])
    cut = _slice_of(low, source, low.unique(f"{name}@slice"), axis, index, None if index == -1 else index + 1)
    return _reshape(low, node, name, cut)


def _split(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    parts = node.meta["val"]
    rank = parts[0].dim()
    axis = int(_arguments(node, "sizes", "dim").get("dim", 0)) % rank
    cuts, begin = [], 0
    for part in parts:
        size = part.shape[axis]
        if not isinstance(size, int):
            raise ConversionError(f"'{name}' splits a dynamic axis", got=str(size), expected="a fixed size")
        cuts.append((begin, begin + size))
        begin += size
    return Parts(source, axis, tuple(cuts), False)


def _unbind(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    whole = node.all_input_nodes[0].meta["val"]
    axis = int(_arguments(node, "dim").get("dim", 0)) % whole.dim()
    return Parts(source, axis, tuple((i, i + 1) for i in range(_fixed(whole.shape[axis], name))), True)


def _part(low: Lowering, node: GraphNode, name: str, source: Parts | Codes | Floats) -> Lowered:
    index: Any = node.args[1]
    if not isinstance(source, Parts):
        return source  # of a pooling that returns indices too
    begin, end = source.cuts[index]
    if not source.drops_axis:
        return _slice_of(low, source.whole, name, source.axis, begin, end)
    cut = _slice_of(low, source.whole, low.unique(f"{name}@slice"), source.axis, begin, end)
    shape = tuple(n if isinstance(n, int) else 0 if i < source.axis else -1 for i, n in enumerate(node.meta["val"].shape))
    output = low.moved(name, cut)
    low.emit(program_nodes.Reshape(cut.name, name, shape))
    return output


MOVEMENTS: dict[Any, Move] = {
    **dict.fromkeys(
        (
            aten.view.default,
            aten._unsafe_view.default,
            aten.reshape.default,
            aten.flatten.using_ints,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.unsqueeze.default,
            aten.unflatten.int,
        ),
        _reshape,
    ),
    **dict.fromkeys(
        (aten.permute.default, aten.transpose.int, aten.t.default, aten.mT.default, aten.numpy_T.default), _permute
    ),
    **dict.fromkeys((aten.movedim.int, aten.movedim.intlist), _movedim),
    **dict.fromkeys((aten.cat.default, aten.stack.default), _concat),
    **dict.fromkeys((aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec), _upsample),
    **dict.fromkeys(
        (
            aten.flip.default,
            aten.roll.default,
            aten.channel_shuffle.default,
            aten.expand.default,
            aten.expand_as.default,
            aten.repeat.default,
            aten.repeat_interleave.self_int,
            aten.index_select.default,
            aten.index.Tensor,
        ),
        _take,
    ),
    aten.pixel_shuffle.default: _shuffle,
    aten.pixel_unshuffle.default: _unshuffle,
    aten.unbind.int: _unbind,
    aten.narrow.default: _narrow,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default), _split),
    operator.getitem: _part,
}
ON_CODES: dict[Any, Move] = {
    **dict.fromkeys((aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default), _max_pool),
    **dict.fromkeys(
        (aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default),
        _adaptive_max_pool,
    ),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), _pad),
}
"""What moves codes alone: on values it is arithmetic."""
PASSING = frozenset(
    (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default,
     aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default,
     aten.detach_.default, aten.lift_fresh_copy.default)
)  # fmt: skip
