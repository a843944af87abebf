"""Nodes that move codes and keep scale and zero point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from truequant.integer.nodes import Concat, DepthToSpace, Node, Pad, Reshape, Slice, Take, Transpose, Upsample
from truequant.integer.program import IntegerProgram
from truequant.integer.shapes import reshaped
from truequant.integer.storage import storage


def reshape(node: Reshape, program: IntegerProgram, x: Tensor) -> Tensor:
    return _stored(x.reshape(reshaped(node, tuple(x.shape))), node, program)


def transpose(node: Transpose, program: IntegerProgram, x: Tensor) -> Tensor:
    return _stored(x.permute(node.permutation), node, program)


def cut(node: Slice, program: IntegerProgram, x: Tensor) -> Tensor:
    at = [slice(None)] * x.dim()
    at[node.axis] = slice(node.begin, node.end, node.step)
    return _stored(x[tuple(at)], node, program)


def take(node: Take, program: IntegerProgram, x: Tensor) -> Tensor:
    return _stored(taken(node, x), node, program)


def upsample(node: Upsample, program: IntegerProgram, x: Tensor) -> Tensor:
    return _stored(repeated(node, x), node, program)


def depth_to_space(node: DepthToSpace, program: IntegerProgram, x: Tensor) -> Tensor:
    return _stored(spread(node, x), node, program)


def pad(node: Pad, program: IntegerProgram, x: Tensor) -> Tensor:
    return padded(node.padding, _stored(x, node, program), program.edges[node.output].zero_point)


def concat(node: Concat, program: IntegerProgram, *tensors: Tensor) -> Tensor:
    return torch.cat([_stored(x, node, program) for x in tensors], node.axis)


# -- the same on any tensor, of codes or of values ---------------------------------------------------------------------
def taken(node: Take, x: Tensor) -> Tensor:
    """The places named along an axis."""
    return x.index_select(node.axis, torch.tensor(node.indices, device=x.device))


def repeated(node: Upsample, x: Tensor) -> Tensor:
    """Each place repeated along the last axes."""
    for axis, factor in enumerate(reversed(node.factors), start=1):
        x = x.repeat_interleave(factor, dim=-axis)
    return x


def spread(node: DepthToSpace, x: Tensor) -> Tensor:
    """Channels moved into space."""
    rank, (batch, channels, *space) = len(node.block), x.shape
    left = channels // math.prod(node.block)
    x = x.reshape(batch, left, *node.block, *space)
    pairs = [axis for i in range(rank) for axis in (2 + rank + i, 2 + i)]
    return x.permute(0, 1, *pairs).reshape(batch, left, *(n * b for n, b in zip(space, node.block, strict=True)))


def padded(padding: tuple[tuple[int, int], ...], x: Tensor, value: float = 0.0) -> Tensor:
    """The last axes with `value` before and behind."""
    return torch.nn.functional.pad(x, [side for pair in reversed(padding) for side in pair], value=value)


def _stored(x: Tensor, node: Node, program: IntegerProgram) -> Tensor:
    edge = program.edges.get(node.output)
    return x if edge is None else x.to(storage(edge))
