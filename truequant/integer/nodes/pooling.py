"""GlobalAverage, AveragePool and MaxPool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.edge import Edge
from truequant.integer.nodes.base import Shape, Unary
from truequant.integer.nodes.checks import check_clamp, check_meaning, check_ratio, check_rule, check_sizes
from truequant.integer.storage import scale_of, storage, zero_point_of
from truequant.numerics import INT32_MAX, global_average_factor, requantize
from truequant.numerics.pooling import pooled_length, window_average
from truequant.schemes import ArithmeticRule

MAX_TAPS = 2**16
"""Bound of the elements of one pooling window."""


@dataclass(frozen=True, slots=True)
class GlobalAverage(Unary):
    """Mean over `axes` (negative, counted from the end), an integer sum of `xq - zx`, then
    `clamp(rint(float32(acc) * M) + zy)`, M by the rule. The axes stay with length 1 where `keepdim`.
    """

    axes: tuple[int, ...]
    keepdim: bool
    low: int
    high: int
    rule: ArithmeticRule = "onnxruntime"
    sums = True

    def check(self, edges: Mapping[str, Edge]) -> None:
        check_clamp(self, self.low, self.high, edges[self.output])
        check_ratio(self, edges)
        check_rule(self, self.rule)
        if not self.axes or len(set(self.axes)) != len(self.axes) or max(self.axes) >= 0:
            raise ConversionError(f"{self.label}: impossible axes", got=self.axes, expected="distinct, counted from the end")

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape = shapes[0]
        if len(shape) < -min(self.axes):
            raise self.misfit(shape, f"axes {self.axes}")
        axes = {axis % len(shape) for axis in self.axes}
        if 0 in (shape[axis] for axis in axes):
            raise self.misfit(shape, "something to average")
        if self.keepdim:
            return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
        return tuple(size for axis, size in enumerate(shape) if axis not in axes)

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        (x,), source, target = inputs, edges[self.input], edges[self.output]
        count = math.prod(x.shape[axis] for axis in self.axes)
        large = count * source.reach > INT32_MAX
        if large and not source.wide:
            raise ConversionError(f"{self.label}: an accumulator may leave int32", got=f"a mean over {count} codes")
        # Where the bound makes int32 exact, torch sums it faster than int64.
        sums = x.sum(self.axes, keepdim=self.keepdim, dtype=torch.int64 if large else torch.int32) - count * source.zero_point
        factor = global_average_factor(scale_of(source, x), scale_of(target, x), count, self.rule)
        return requantize(sums, factor, zero_point_of(target, x), self.low, self.high).to(storage(target))


@dataclass(frozen=True, slots=True, eq=False)
class _Pool(Unary):
    """A window that slides over the last axes; outside of the input lies `padding`."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def check_windows(self, dilations: tuple[int, ...]) -> None:
        if not len(self.kernel) == len(self.stride) == len(self.padding) == len(dilations) or not 1 <= len(self.kernel) <= 3:
            raise ConversionError(
                f"{self.label}: kernel, stride, padding and dilation disagree about the number of spatial axes",
                got=f"kernel {self.kernel}, stride {self.stride}, padding {self.padding}, dilation {dilations}",
                expected="1 to 3 axes",
            )
        check_sizes(self, "kernel", self.kernel, 1)
        check_sizes(self, "stride", self.stride, 1)
        check_sizes(self, "dilation", dilations, 1)
        check_sizes(self, "padding", self.padding, 0)
        if sum(self.kernel) > MAX_TAPS:
            raise ConversionError(
                f"{self.label}: a window too large", got=self.kernel, expected=f"at most {MAX_TAPS} elements an axis"
            )
        for size, dilation, padding in zip(self.kernel, dilations, self.padding, strict=True):
            if 2 * padding > dilation * (size - 1) + 1:
                raise ConversionError(
                    f"{self.label}: padding larger than half the window", got=self.padding, expected=f"half of {self.kernel}"
                )

    def pooled(self, shape: Shape, dilations: tuple[int, ...], ceil_mode: bool) -> Shape:
        """How many windows there are on each axis."""
        rank = len(self.kernel)
        if len(shape) <= rank:
            raise self.misfit(shape, f"more than {rank} axes")
        fields = zip(shape[-rank:], self.kernel, self.stride, self.padding, dilations, strict=True)
        spatial = [pooled_length(*sizes, ceil_mode) for sizes in fields]
        if min(spatial) < 1:
            raise self.misfit(shape, f"room for a window of {self.kernel}")
        return (*shape[:-rank], *spatial)


@dataclass(frozen=True, slots=True)
class AveragePool(_Pool):
    """Mean of those elements of each window that lie inside the input, by a named rule; padding is not counted."""

    ceil_mode: bool
    rule: ArithmeticRule
    low: int
    high: int
    sums = True

    def check(self, edges: Mapping[str, Edge]) -> None:
        check_clamp(self, self.low, self.high, edges[self.output])
        check_ratio(self, edges)
        self.check_windows((1,) * len(self.kernel))
        check_rule(self, self.rule)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return self.pooled(shapes[0], (1,) * len(self.kernel), self.ceil_mode)

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        (x,), source, target = inputs, edges[self.input], edges[self.output]
        read, written = ((scale_of(edge, x), zero_point_of(edge, x)) for edge in (source, target))
        windows = self.kernel, self.stride, self.padding, self.ceil_mode
        return window_average(x.float(), read, written, *windows, self.low, self.high, self.rule).to(storage(target))


@dataclass(frozen=True, slots=True)
class MaxPool(_Pool):
    """Largest code of each window; scale and zero point are kept, padding never wins."""

    dilation: tuple[int, ...]
    ceil_mode: bool

    def check(self, edges: Mapping[str, Edge]) -> None:
        check_meaning(self, edges)
        self.check_windows(self.dilation)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return self.pooled(shapes[0], self.dilation, self.ceil_mode)

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """Windows are boxes, so the axes are pooled one after the other."""
        target = edges[self.output]
        x = inputs[0].to(storage(target))
        fields = zip(self.kernel, self.stride, self.padding, self.dilation, strict=True)
        for axis, (kernel, stride, padding, dilation) in enumerate(fields, start=x.dim() - len(self.kernel)):
            count = pooled_length(x.shape[axis], kernel, stride, padding, dilation, self.ceil_mode)
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
