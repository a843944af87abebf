"""Shapes of every tensor of a program from the shapes of its inputs, in plain integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from truequant.errors import ConversionError
from truequant.integer import islands
from truequant.integer.checks import label
from truequant.integer.nodes import (
    MOVING,
    Add,
    AveragePool,
    Concat,
    Conv,
    DepthToSpace,
    DynamicLinear,
    GlobalAverage,
    Island,
    Linear,
    Lookup,
    MatMul,
    MaxPool,
    Mul,
    Node,
    Pad,
    Reshape,
    Slice,
    Sub,
    Take,
    Transpose,
    Upsample,
    WeightOnlyLinear,
    inputs_of,
)
from truequant.integer.program import DTYPES, IntegerProgram
from truequant.numerics import pooled_length

Shape = tuple[int, ...]
MAX_ELEMENTS = 2**36
"""Bound of each tensor of a program: no file and no input makes a call allocate without end."""


def program_shapes(program: IntegerProgram, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every name. ConversionError at the first node that its input does not fit, or that writes too much."""
    return program_layout(program, inputs)[0]


def program_layout(program: IntegerProgram, inputs: Mapping[str, Shape]) -> tuple[dict[str, Shape], dict[str, torch.dtype]]:
    """The shape of every name, and the dtype of every value. Raises as `program_shapes` does."""
    shapes = dict(inputs)
    dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in program.inputs}
    for node in program.nodes:
        names = inputs_of(node)
        if isinstance(node, Island):
            shape, dtypes[node.output] = islands.layout_of(node, [(shapes[n], dtypes[n]) for n in names])
        else:
            shape = output_shape(node, [shapes[name] for name in names])
            if node.output not in program.edges:
                dtypes[node.output] = dtypes[names[0]] if isinstance(node, MOVING) else torch.float32
        shapes[node.output] = shape
        if max(math.prod(shape), *shape, 0) > MAX_ELEMENTS:
            raise ConversionError(
                f"{label(node)} is too large", got=f"shape {shape}", expected=f"at most {MAX_ELEMENTS} elements"
            )
    return shapes, dtypes


def output_shape(node: Node, inputs: Sequence[Shape]) -> Shape:
    """The shape that a node writes. ConversionError where it cannot read such inputs."""
    shape = inputs[0] if inputs else ()
    match node:
        case Conv():
            return _conv(node, shape)
        case Linear() | WeightOnlyLinear() | DynamicLinear():
            if not shape or shape[-1] != node.weight.shape[1]:
                raise _misfit(node, shape, f"a last axis of {node.weight.shape[1]}")
            return (*shape[:-1], node.weight.shape[0])
        case Add() | Sub() | Mul():
            return _broadcast(node, *inputs)
        case MatMul():
            return _matmul(node, *inputs)
        case GlobalAverage():
            return _average(node, shape)
        case MaxPool() | AveragePool():
            return _pool(node, shape)
        case Reshape():
            return reshaped(node, shape)
        case Transpose():
            if len(node.permutation) != len(shape):
                raise _misfit(node, shape, f"{len(node.permutation)} axes")
            return tuple(shape[axis] for axis in node.permutation)
        case Slice():
            axis = _axis(node, node.axis, shape)
            length = len(range(*slice(node.begin, node.end, node.step).indices(shape[axis])))
            return (*shape[:axis], length, *shape[axis + 1 :])
        case Lookup():
            return (*shape, *node.entries.shape[1:])
        case Take():
            axis = _axis(node, node.axis, shape)
            if max(node.indices) >= shape[axis]:
                raise _misfit(node, shape, f"more than {max(node.indices)} on axis {axis}")
            return (*shape[:axis], len(node.indices), *shape[axis + 1 :])
        case Upsample():
            if len(node.factors) > len(shape):
                raise _misfit(node, shape, f"at least {len(node.factors)} axes")
            kept = len(shape) - len(node.factors)
            return (*shape[:kept], *(n * f for n, f in zip(shape[kept:], node.factors, strict=True)))
        case DepthToSpace():
            rank, depth = len(node.block), math.prod(node.block)
            if len(shape) != rank + 2 or shape[1] % depth:
                raise _misfit(node, shape, f"{rank + 2} axes, a multiple of {depth} on axis 1")
            return (shape[0], shape[1] // depth, *(n * b for n, b in zip(shape[2:], node.block, strict=True)))
        case Pad():
            if len(node.padding) > len(shape):
                raise _misfit(node, shape, f"at least {len(node.padding)} axes")
            kept = len(shape) - len(node.padding)
            return (*shape[:kept], *(n + sum(pair) for n, pair in zip(shape[kept:], node.padding, strict=True)))
        case Concat():
            return _concat(node, inputs)
        case Island():
            return islands.layout_of(node, [(shape, torch.float32) for shape in inputs])[0]
        case _:
            return shape


def reshaped(node: Reshape, shape: Shape) -> Shape:
    """The target of a reshape with its 0 and -1 filled in, also where an axis is empty."""
    kept = {axis for axis, size in enumerate(node.shape) if size == 0}
    if any(axis >= len(shape) for axis in kept):
        raise _misfit(node, shape, f"axes to keep for {node.shape}")
    sizes = [shape[axis] if axis in kept else size for axis, size in enumerate(node.shape)]
    # Kept axes cancel out, so that an empty batch still tells what -1 stands for.
    remaining = math.prod(size for axis, size in enumerate(shape) if axis not in kept)
    named = math.prod(size for axis, size in enumerate(sizes) if axis not in kept and size != -1)
    if -1 in sizes:
        if named == 0 or remaining % named:
            raise _misfit(node, shape, f"elements for {node.shape}")
        sizes[sizes.index(-1)] = remaining // named
    elif named != remaining:
        raise _misfit(node, shape, f"elements for {node.shape}")
    return tuple(sizes)


def _conv(node: Conv, shape: Shape) -> Shape:
    channels = node.weight.shape[1] * node.groups
    if len(shape) != node.weight.dim() or shape[1] != channels:
        raise _misfit(node, shape, f"{node.weight.dim()} axes, {channels} channels on axis 1")
    spatial = []
    for length, kernel, stride, pads, dilation in zip(
        shape[2:], node.weight.shape[2:], node.stride, node.padding, node.dilation, strict=True
    ):
        count = (length + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1
        if count < 1:
            raise _misfit(node, shape, f"room for a window of {tuple(node.weight.shape[2:])}")
        spatial.append(count)
    return (shape[0], node.weight.shape[0], *spatial)


def _pool(node: MaxPool | AveragePool, shape: Shape) -> Shape:
    rank = len(node.kernel)
    if len(shape) <= rank:
        raise _misfit(node, shape, f"more than {rank} axes")
    dilation = node.dilation if isinstance(node, MaxPool) else (1,) * rank
    fields = zip(shape[-rank:], node.kernel, node.stride, node.padding, dilation, strict=True)
    spatial = [pooled_length(*sizes, node.ceil_mode) for sizes in fields]
    if min(spatial) < 1:
        raise _misfit(node, shape, f"room for a window of {node.kernel}")
    return (*shape[:-rank], *spatial)


def _average(node: GlobalAverage, shape: Shape) -> Shape:
    if len(shape) < -min(node.axes):
        raise _misfit(node, shape, f"axes {node.axes}")
    axes = {axis % len(shape) for axis in node.axes}
    if 0 in (shape[axis] for axis in axes):
        raise _misfit(node, shape, "something to average")
    if node.keepdim:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _broadcast(node: Node, left: Shape, right: Shape) -> Shape:
    rank = max(len(left), len(right))
    sizes = []
    for a, b in zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True):
        if a != b and 1 not in (a, b):
            raise ConversionError(
                f"{label(node)} cannot join its inputs", got=f"shapes {left} and {right}", expected="shapes that broadcast"
            )
        sizes.append(b if a == 1 else a)
    return tuple(sizes)


def _matmul(node: MatMul, left: Shape, right: Shape) -> Shape:
    if min(len(left), len(right)) < 2 or left[-1] != right[-2]:
        raise ConversionError(
            f"{label(node)} cannot multiply its inputs", got=f"shapes {left} and {right}", expected="(…, a, b) and (…, b, c)"
        )
    return (*_broadcast(node, left[:-2], right[:-2]), left[-2], right[-1])


def _concat(node: Concat, inputs: Sequence[Shape]) -> Shape:
    first = inputs[0]
    axis = _axis(node, node.axis, first)
    for shape in inputs:
        if len(shape) != len(first) or (*shape[:axis], *shape[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]):
            raise ConversionError(
                f"{label(node)} cannot join its inputs",
                got=f"shapes {list(inputs)}",
                expected=f"equal sizes but on axis {axis}",
            )
    return (*first[:axis], sum(shape[axis] for shape in inputs), *first[axis + 1 :])


def _axis(node: Node, axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise _misfit(node, shape, f"an axis {axis}")
    return axis % len(shape)


def _misfit(node: Node, shape: Shape, expected: str) -> ConversionError:
    return ConversionError(f"{label(node)} cannot read its input", got=f"shape {shape}", expected=expected)
