"""Lowering of ops that only move what they read: codes, which keep scale and zero point, or values."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode

from truequant.errors import ConversionError
from truequant.integer import nodes as program_nodes
from truequant.planning.float_ops import MOVING_OPS
from truequant.transform.constants import constants, values
from truequant.transform.lowering import CASTS, Codes, Floats, Lowered, Lowering, Parts, Unmovable, sizes
from truequant.transform.taking import arguments, fixed, reordered, repeated, take, upsample

aten = torch.ops.aten
Move = Callable[[Lowering, GraphNode, str, Any], Lowered]


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
        raise Unmovable
    output = low.moved(name, source)
    low.emit(program_nodes.Reshape(source.name, name, tuple(shape)))
    return output


def _movedim(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    rank = node.meta["val"].dim()
    found = arguments(node, "source", "destination")
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
        order = [int(a) % rank for a in arguments(node, "dims")["dims"]]
    else:
        found = arguments(node, "dim0", "dim1") if node.target is aten.transpose.int else {"dim0": -2, "dim1": -1}
        a, b = int(found["dim0"]) % rank, int(found["dim1"]) % rank
        order[a], order[b] = order[b], order[a]
    output = low.moved(name, source)
    low.emit(program_nodes.Transpose(source.name, name, tuple(order)))
    return output


def _max_pool(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    n = int(str(node.target).split("pool")[1][0])
    found = arguments(node, "kernel_size", "stride", "padding", "dilation", "ceil_mode")
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
    # A cache begins with an empty tensor, and what rotary products leave as it is may be empty too.
    full = [t for t in tensors if not isinstance(value := low.values[t], Tensor) or value.numel()]
    parts = [low.values[t] for t in full]
    site = low.site_of(node)
    if site is not None and site.plan.constants and site.exact():
        parts = constants(low, node, site, tensors)
    elif site is not None and site.plan.action == "pointwise":
        parts = [*values(low, name, full, repeats=True)]
        source = Floats(name)
    if any(isinstance(p, Tensor) for p in parts):
        return low.tables.island(low, node, name)
    if len(parts) == 1 and node.target is aten.cat.default:
        return parts[0]
    if not all(isinstance(p, Codes) and isinstance(source, Codes) and p.grid is source.grid for p in parts):
        parts = [low.floats(p) for p in parts]
        source = Floats(name)
    rank = node.meta["val"].dim()
    axis = int(arguments(node, "dim").get("dim", 0)) % rank
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


def _shuffle(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    output = low.moved(name, source)
    factor = int(arguments(node, "factor")["factor"])
    low.emit(program_nodes.DepthToSpace(source.name, name, (factor, factor)))
    return output


def _unshuffle(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    """Space to depth: split each spatial axis, turn, join."""
    _, channels, height, width = node.all_input_nodes[0].meta["val"].shape
    r, height, width = int(arguments(node, "factor")["factor"]), fixed(height, name), fixed(width, name)
    split, turned = low.moved(low.unique(f"{name}@split"), source), low.moved(low.unique(f"{name}@turned"), source)
    low.emit(program_nodes.Reshape(source.name, split.name, (0, channels, height // r, r, width // r, r)))
    low.emit(program_nodes.Transpose(split.name, turned.name, (0, 1, 3, 5, 2, 4)))
    output = low.moved(name, source)
    low.emit(program_nodes.Reshape(turned.name, name, (0, channels * r * r, height // r, width // r)))
    return output


def _adaptive_max_pool(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    """Windows of one size, as they are; of several sizes, each with its last place repeated up to the longest."""
    value = node.meta["val"]
    if isinstance(value, (tuple, list)):
        value = value[0]
    n = int(str(node.target).split("pool")[1][0])
    before, after = (
        [fixed(size, name) for size in shape[-n:]] for shape in (node.all_input_nodes[0].meta["val"].shape, value.shape)
    )
    rank, window, orders = value.dim(), [], {}
    for i, (size, count) in enumerate(zip(before, after, strict=True)):
        ends = [((k * size) // count, -((-(k + 1) * size) // count)) for k in range(count)]
        window.append(max(end - begin for begin, end in ends))
        if size % count:
            orders[rank - n + i] = [min(begin + k, end - 1) for begin, end in ends for k in range(window[-1])]
    if orders:
        source = reordered(low, source, low.unique(f"{name}@windows"), orders)
    output = low.moved(name, source)
    low.emit(program_nodes.MaxPool(source.name, name, tuple(window), tuple(window), (0,) * n, (1,) * n, False))
    return output


def _pad(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    found = (
        arguments(node, "pad", "value")
        if node.target is aten.constant_pad_nd.default
        else arguments(node, "pad", "mode", "value")
    )
    flat, mode = [int(p) for p in found["pad"]], found.get("mode", "constant")
    if mode != "constant":
        return repeated(low, node, name, source, flat, mode)
    if found.get("value") not in (None, 0, 0.0):
        raise Unmovable
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)][::-1]
    output = low.moved(name, source)
    low.emit(program_nodes.Pad(source.name, name, tuple(pairs)))
    return output


def _slice_of(
    low: Lowering, source: Codes | Floats, name: str, axis: int, begin: int, end: int | None, step: int = 1
) -> Codes | Floats:
    output = low.moved(name, source)
    low.emit(program_nodes.Slice(source.name, name, axis, begin, end, step))
    return output


_LARGE = 2**62


def _slice(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    found = arguments(node, "dim", "start", "end", "step")
    axis, begin, end = int(found.get("dim", 0)), found.get("start"), found.get("end")
    axis %= node.meta["val"].dim()
    begin, step = 0 if begin is None else begin, found.get("step", 1)
    if begin == 0 and step == 1 and (end is None or (isinstance(end, int) and end >= _LARGE)):
        return source  # x[:]
    if not all(isinstance(v, int) for v in (begin, step)) or not (end is None or isinstance(end, int)):
        raise Unmovable
    return _slice_of(low, source, name, axis, begin, None if end is None or end >= _LARGE else end, step)


def _narrow(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    found = arguments(node, "dim", "start", "length")
    begin, length = found["start"], found["length"]
    if not isinstance(begin, int) or not isinstance(length, int):
        raise Unmovable
    axis = int(found["dim"]) % node.meta["val"].dim()
    return _slice_of(low, source, name, axis, begin, begin + length if begin + length else None)


def _select(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    found = arguments(node, "dim", "index")
    rank = node.all_input_nodes[0].meta["val"].dim()
    axis, index = int(found["dim"]) % rank, int(found["index"])
    cut = _slice_of(low, source, low.unique(f"{name}@slice"), axis, index, None if index == -1 else index + 1)
    return _reshape(low, node, name, cut)


def _split(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    parts = node.meta["val"]
    rank = parts[0].dim()
    axis = int(arguments(node, "sizes", "dim").get("dim", 0)) % rank
    cuts, begin = [], 0
    for part in parts:
        size = part.shape[axis]
        if not isinstance(size, int):
            if node.target is aten.split.Tensor:
                raise _counted(node, name, axis, "chunk(n) or split([…]) returns as many parts as it says")
            raise Unmovable
        cuts.append((begin, begin + size))
        begin += size
    return Parts(source, axis, tuple(cuts), False)


def _unbind(low: Lowering, node: GraphNode, name: str, source: Codes | Floats) -> Lowered:
    whole = node.all_input_nodes[0].meta["val"]
    axis = int(arguments(node, "dim").get("dim", 0)) % whole.dim()
    if not isinstance(whole.shape[axis], int):
        raise _counted(node, name, axis, "ops on the whole tensor instead of a loop over the axis")
    return Parts(source, axis, tuple((i, i + 1) for i in range(whole.shape[axis])), True)


def _counted(node: GraphNode, name: str, axis: int, fix: str) -> ConversionError:
    return ConversionError(
        f"'{name}' returns as many tensors as a dynamic axis is long",
        got=f"{node.target} along axis {axis}", expected="a number of tensors that is the same for every input", fix=fix,
    )  # fmt: skip


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
            aten.view_as.default,
            aten.reshape_as.default,
        ),
        _reshape,
    ),
    **dict.fromkeys(
        (aten.permute.default, aten.transpose.int, aten.t.default, aten.mT.default, aten.numpy_T.default), _permute
    ),
    **dict.fromkeys((aten.movedim.int, aten.movedim.intlist), _movedim),
    **dict.fromkeys((aten.cat.default, aten.stack.default), _concat),
    **dict.fromkeys((aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec), upsample),
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
        take,
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
assert {str(op).removeprefix("aten.") for op in {*MOVEMENTS, *PASSING, *CASTS} - {operator.getitem}} == MOVING_OPS
