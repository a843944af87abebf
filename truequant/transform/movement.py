"""Lowering of ops that only move codes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node as GraphNode

from truequant.errors import ConversionError
from truequant.integer import nodes as program_nodes
from truequant.transform.lowering import Codes, Lowered, Lowering, Parts, sizes

aten = torch.ops.aten
Move = Callable[[Lowering, GraphNode, str, Any], Lowered]


def _arguments(node: GraphNode, *names: str) -> dict[str, Any]:
    """Arguments by name, the tensor that is moved left out."""
    return dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)


def _reshape(low: Lowering, node: GraphNode, name: str, source: Codes) -> Lowered:
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
    output = low.codes(name, source.grid)
    low.emit(program_nodes.Reshape(source.name, name, tuple(shape)))
    return output


def _permute(low: Lowering, node: GraphNode, name: str, source: Codes) -> Lowered:
    rank = node.meta["val"].dim()
    order = list(range(rank))
    if node.target is aten.permute.default:
        order = [int(a) % rank for a in _arguments(node, "dims")["dims"]]
    else:
        found = _arguments(node, "dim0", "dim1") if node.target is aten.transpose.int else {"dim0": 0, "dim1": 1}
        a, b = int(found["dim0"]) % rank, int(found["dim1"]) % rank
        order[a], order[b] = order[b], order[a]
    output = low.codes(name, source.grid)
    low.emit(program_nodes.Transpose(source.name, name, tuple(order)))
    return output


def _max_pool(low: Lowering, node: GraphNode, name: str, source: Codes) -> Lowered:
    n = 1 if node.target is aten.max_pool1d.default else 2
    found = _arguments(node, "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    kernel = sizes(found["kernel_size"], n)
    stride = found.get("stride")
    output = low.codes(name, source.grid)
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


def _concat(low: Lowering, node: GraphNode, name: str, source: Codes) -> Lowered:
    tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
    parts = [low.values[t] for t in tensors]
    if not all(isinstance(p, Codes) and p.grid is source.grid for p in parts):
        raise ConversionError(f"'{name}' joins edges that do not share a grid")
    rank = node.meta["val"].dim()
    axis = int(_arguments(node, "dim").get("dim", 0)) % rank
    output = low.codes(name, source.grid)
    low.emit(program_nodes.Concat(tuple(p.name for p in parts if isinstance(p, Codes)), name, axis))
    return output


def _pad(low: Lowering, node: GraphNode, name: str, source: Codes) -> Lowered:
    found = (
        _arguments(node, "pad", "value")
        if node.target is aten.constant_pad_nd.default
        else _arguments(node, "pad", "mode", "value")
    )
    if found.get("mode", "constant") != "constant" or found.get("value") not in (None, 0, 0.0):
        raise ConversionError(f"'{name}' pads with something else than real zeros", got=str(found))
    flat = [int(p) for p in found["pad"]]
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)][::-1]
    output = low.codes(name, source.grid)
    low.emit(program_nodes.Pad(source.name, name, tuple(pairs)))
    return output


def _slice_of(low: Lowering, source: Codes, name: str, axis: int, begin: int, end: int | None, step: int = 1) -> Codes:
    output = low.codes(name, source.grid)
    low.emit(program_nodes.Slice(source.name, name, axis, begin, end, step))
    return output


_LARGE = 2**62


def _slice(low: Lowering, node: GraphNode, name: str, source: Codes) -> Lowered:
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


def _select(low: Lowering, node: GraphNode, name: str, source: Codes) -> Lowered:
    found = _arguments(node, "dim", "index")
    rank = node.all_input_nodes[0].meta["val"].dim()
    axis, index = int(found["dim"]) % rank, int(found["index"])
    cut = _slice_of(low, source, low.unique(f"{name}.slice"), axis, index, None if index == -1 else index + 1)
    return _reshape(low, node, name, cut)


def _split(low: Lowering, node: GraphNode, name: str, source: Codes) -> Lowered:
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
    return Parts(source, axis, tuple(cuts))


def _part(low: Lowering, node: GraphNode, name: str, source: Parts) -> Lowered:
    index: Any = node.args[1]
    begin, end = source.cuts[index]
    return _slice_of(low, source.whole, name, source.axis, begin, end)


MOVEMENTS: dict[Any, Move] = {
    **dict.fromkeys(
        (
            aten.view.default,
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
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), _permute),
    **dict.fromkeys((aten.max_pool1d.default, aten.max_pool2d.default), _max_pool),
    aten.cat.default: _concat,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default), _split),
    operator.getitem: _part,
}
PASSING = frozenset(
    (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default,
     aten.contiguous.default, aten.to.dtype, aten._to_copy.default, aten.clone.default, aten.alias.default, aten.detach.default)
)  # fmt: skip
