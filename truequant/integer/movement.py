"""Nodes that move codes and keep scale and zero point."""

from __future__ import annotations

import torch
from torch import Tensor

from truequant.integer.nodes import Concat, Node, Pad, Reshape, Slice, Transpose
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


def pad(node: Pad, program: IntegerProgram, x: Tensor) -> Tensor:
    sides = [side for pair in reversed(node.padding) for side in pair]
    return torch.nn.functional.pad(_stored(x, node, program), sides, value=program.edges[node.output].zero_point)


def concat(node: Concat, program: IntegerProgram, *tensors: Tensor) -> Tensor:
    return torch.cat([_stored(x, node, program) for x in tensors], node.axis)


def _stored(x: Tensor, node: Node, program: IntegerProgram) -> Tensor:
    return x.to(storage(program.edges[node.output]))
