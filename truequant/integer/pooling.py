"""GlobalAverage, AveragePool and MaxPool."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.checks import label
from truequant.integer.nodes import AveragePool, GlobalAverage, MaxPool
from truequant.integer.program import IntegerProgram
from truequant.integer.storage import scale_of, storage, zero_point_of
from truequant.numerics import INT32_MAX, global_average_factor, pooled_length, requantize, window_average


def global_average(node: GlobalAverage, program: IntegerProgram, x: Tensor) -> Tensor:
    """Integer sums over `axes`, requantized by `float32(sx / float32(sy * n))`."""
    source, target = program.edges[node.input], program.edges[node.output]
    count = math.prod(x.shape[axis] for axis in node.axes)
    large = count * max(source.qmax - source.zero_point, source.zero_point - source.qmin) > INT32_MAX
    if large and not source.wide:
        raise ConversionError(f"{label(node)}: an accumulator may leave int32", got=f"a mean over {count} codes")
    # Where the bound makes int32 exact, torch sums it faster than int64.
    sums = x.sum(node.axes, keepdim=node.keepdim, dtype=torch.int64 if large else torch.int32) - count * source.zero_point
    factor = global_average_factor(scale_of(source, x), scale_of(target, x), count)
    return requantize(sums, factor, zero_point_of(target, x), node.low, node.high).to(storage(target))


def average_pool(node: AveragePool, program: IntegerProgram, x: Tensor) -> Tensor:
    """Averages of what lies inside the input, by the node's named rule."""
    source, target = program.edges[node.input], program.edges[node.output]
    read, written = ((scale_of(edge, x), zero_point_of(edge, x)) for edge in (source, target))
    windows = node.kernel, node.stride, node.padding, node.ceil_mode
    return window_average(x.float(), read, written, *windows, node.low, node.high, node.rule).to(storage(target))


def max_pool(node: MaxPool, program: IntegerProgram, x: Tensor) -> Tensor:
    """The largest code of each window. Windows are boxes, so the axes are pooled one after the other."""
    target = program.edges[node.output]
    x = x.to(storage(target))
    rank = len(node.kernel)
    fields = zip(node.kernel, node.stride, node.padding, node.dilation, strict=True)
    for axis, (kernel, stride, padding, dilation) in enumerate(fields, start=x.dim() - rank):
        count = pooled_length(x.shape[axis], kernel, stride, padding, dilation, node.ceil_mode)
        x = _pool_axis(x, axis, count, kernel, stride, padding, dilation, target.qmin)
    return x


def _pool_axis(x: Tensor, axis: int, count: int, kernel: int, stride: int, padding: int, dilation: int, lowest: int) -> Tensor:
    """`out[i] = max over t of in[i * stride + t * dilation - padding]`; what lies outside is `lowest` and never wins."""
    behind = (count - 1) * stride + dilation * (kernel - 1) + 1 - x.shape[axis] - padding
    x = torch.nn.functional.pad(x, [0, 0] * (x.dim() - 1 - axis) + [padding, max(0, behind)], value=lowest)
    at: list[slice] = [slice(None)] * x.dim()
    result: Tensor | None = None
    for tap in range(kernel):
        at[axis] = slice(tap * dilation, tap * dilation + (count - 1) * stride + 1, stride)
        taken = x[tuple(at)]
        result = taken if result is None else torch.maximum(result, taken)
    assert result is not None
    return result
