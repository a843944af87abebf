"""Conv and Linear: exact integer sums, then requantization.

torch has no fast integer matrix product on CPUs, so a sum is carried by a float that holds every partial sum exactly, whatever
the order of its terms: float32 where the layer's codes keep all of them below 2^24, else float64, whose 2^53 no layer reaches.
Accumulators are int32, as in kernels, and int64 where the input has more than 8 bits: 258 such codes can leave int32.
The factors are below 2^8, so that a product is exact even where float32 products are allowed bfloat16 or TF32 factors.
Depthwise layers sum int32 products directly, tap by tap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.edge import Edge
from truequant.integer.nodes.base import Shape, Weighted
from truequant.integer.nodes.checks import all_normal, check_clamp, check_sizes, check_tensor, float32
from truequant.integer.nodes.movement import padded
from truequant.integer.nodes.sums import tap_sums, window_sums
from truequant.integer.storage import CHUNK, scale_of, storage, zero_point_of
from truequant.kernels import Result, Windows, layer_of_codes
from truequant.numerics import FLOAT32_EXACT, INT32_MAX, accumulator_bound, channel_axis, multiplier, requantize

INT32_MIN = -INT32_MAX - 1


@dataclass(frozen=True, slots=True, eq=False)
class Conv(Weighted):
    """`acc = sum((xq - zx) * wq) + bq`, then requantized; padding is real 0, the code `zx`.

    weight: int8 `(out, in / groups, *kernel)`; weight_scale: float32 `(out,)` or `(1,)`; bias: int32 `(out,)`.
    padding: `(begin, end)` for each spatial axis. Where `output` is a value: `float32(acc) * float32(sx * sw)`.
    """

    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    low: int
    high: int
    writing = "either"
    sums = True

    def check(self, edges: Mapping[str, Edge]) -> None:
        _check_tensors(self)
        weight, rank = self.weight, len(self.stride)
        if weight.dim() != rank + 2 or not 1 <= rank <= 3 or len(self.padding) != rank or len(self.dilation) != rank:
            raise ConversionError(
                f"{self.label}: weight, stride, padding and dilation disagree about the number of spatial axes",
                got=f"weight {tuple(weight.shape)}, stride {self.stride}, padding {self.padding}, dilation {self.dilation}",
                expected="1 to 3 axes",
            )
        check_sizes(self, "stride", self.stride, 1)
        check_sizes(self, "dilation", self.dilation, 1)
        check_sizes(self, "padding", tuple(n for pair in self.padding for n in pair), 0)
        if not 1 <= self.groups <= max(1, weight.shape[0]) or weight.shape[0] % self.groups:
            raise ConversionError(f"{self.label}: {weight.shape[0]} channels do not make {self.groups} groups")
        _check_scales(self, edges)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape, channels, kernel = shapes[0], self.weight.shape[1] * self.groups, self.weight.shape[2:]
        if len(shape) != self.weight.dim() or shape[1] != channels:
            raise self.misfit(shape, f"{self.weight.dim()} axes, {channels} channels on axis 1")
        spatial = []
        for length, size, step, pads, gap in zip(shape[2:], kernel, self.stride, self.padding, self.dilation, strict=True):
            count = (length + sum(pads) - gap * (size - 1) - 1) // step + 1
            if count < 1:
                raise self.misfit(shape, f"room for a window of {tuple(kernel)}")
            spatial.append(count)
        return (shape[0], self.weight.shape[0], *spatial)

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """`(N, C, *space)` of codes to `(N, out, *space')`, over pieces of the batch and, for large images, of their rows."""
        (x,), source = inputs, edges[self.input]
        shape = self.output_shape([tuple(x.shape)])
        if (found := _by_kernel(self, edges, x, Windows(self.stride, self.padding, self.dilation, self.groups))) is not None:
            return found
        depthwise = self.weight.shape[1] == 1 and self.groups == x.shape[1]
        carrier = torch.int64 if depthwise else _carrier(self, source)
        if depthwise and _bound(self, source, None) <= INT32_MAX:
            carrier = torch.int32
        weight = self.weight.to(x.device, carrier)
        result = torch.empty(shape, dtype=_result_dtype(self, edges), device=x.device)
        # The largest intermediate of one image: its windows side by side, or its sums.
        elements = math.prod(shape[2:]) * (shape[1] if depthwise else x.shape[1] * math.prod(weight.shape[2:]))
        images = max(1, CHUNK // elements)
        rows = shape[2] if elements <= CHUNK else max(1, CHUNK * shape[2] // elements)
        stride, reach = self.stride[0], self.dilation[0] * (weight.shape[2] - 1) + 1
        for first in range(0, shape[0], images):
            image = _centred(x[first : first + images], source, carrier)
            if any(map(any, self.padding)):
                image = padded(self.padding, image)  # real 0, which is integer 0 here
            for top in range(0, shape[2], rows):
                bottom = min(top + rows, shape[2])
                window = image[:, :, top * stride : (bottom - 1) * stride + reach]
                if depthwise:
                    sums = tap_sums(window, weight, self.stride, self.dilation)
                else:
                    sums = window_sums(window, weight, self.stride, self.dilation, self.groups)
                codes = _finish(self, edges, _accumulators(self, source, sums))
                result[first : first + images, :, top:bottom] = codes
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Linear(Weighted):
    """A conv without space: the last axis of `input` against `weight` `(out, in)` int8; everything else as in `Conv`."""

    bias: Tensor
    low: int
    high: int
    writing = "either"
    sums = True

    def check(self, edges: Mapping[str, Edge]) -> None:
        _check_tensors(self)
        if self.weight.dim() != 2:
            raise ConversionError(f"{self.label}: weight of a wrong shape", got=tuple(self.weight.shape), expected="(out, in)")
        _check_scales(self, edges)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return self.features_of(shapes[0])

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """`(…, in)` of codes to `(…, out)`, over pieces of the rows."""
        (x,), source = inputs, edges[self.input]
        if (found := _by_kernel(self, edges, x)) is not None:
            return found
        rows = x.reshape(-1, x.shape[-1])
        carrier = _carrier(self, source)
        weight = self.weight.to(x.device, carrier).t()
        result = torch.empty((rows.shape[0], weight.shape[1]), dtype=_result_dtype(self, edges), device=x.device)
        step = max(1, CHUNK // max(weight.shape))
        for begin in range(0, rows.shape[0], step):
            piece = slice(begin, begin + step)
            sums = _centred(rows[piece], source, carrier) @ weight
            result[piece] = _finish(self, edges, _accumulators(self, source, sums))
        return result.reshape(*x.shape[:-1], weight.shape[1])


def _by_kernel(node: Conv | Linear, edges: Mapping[str, Edge], x: Tensor, windows: Windows | None = None) -> Tensor | None:
    """The layer in one call of a compiled kernel; None where there is none, or where it may not promise all sums."""
    source, target = edges[node.input], edges.get(node.output)
    if target is None or source.wide or x.dtype not in (torch.int8, torch.uint8):
        return None
    factor = multiplier(scale_of(source, x), node.weight_scale.to(x.device), scale_of(target, x))
    result = Result(node.bias, factor, target.zero_point, node.low, node.high)
    y = layer_of_codes(x, source.zero_point, node.weight, result, windows)
    return None if y is None else y.to(storage(target))


def _check_tensors(node: Conv | Linear) -> None:
    channels = node.weight.shape[0] if node.weight.dim() else 0
    check_tensor(node, "weight", node.weight, torch.int8, None)
    check_tensor(node, "bias", node.bias, torch.int32, ((channels,),))
    check_tensor(node, "weight_scale", node.weight_scale, torch.float32, ((channels,), (1,)))


def _check_scales(node: Conv | Linear, edges: Mapping[str, Edge]) -> None:
    source, target = edges[node.input], edges.get(node.output)
    scale = float32(source.scale) * node.weight_scale.cpu()
    if not all_normal(node.weight_scale.cpu()) or not all_normal(scale):
        raise ConversionError(
            f"{node.label}: weight_scale cannot be",
            got=f"{node.weight_scale.tolist()[:4]} …",
            expected="positive, normal float32, also times the input's scale",
        )
    if target is not None:
        check_clamp(node, node.low, node.high, target)
        if not bool(torch.isfinite(scale / float32(target.scale)).all()):
            raise ConversionError(f"{node.label}: the multiplier sx * sw / sy overflows float32", got=f"sy = {target.scale}")


def _centred(x: Tensor, source: Edge, carrier: torch.dtype) -> Tensor:
    """`xq - zx`, the integers that are summed."""
    x = x.to(carrier)
    return x - source.zero_point if source.zero_point else x


def _bound(node: Conv | Linear, source: Edge, bias: Tensor | None) -> float:
    zero_point = torch.tensor(source.zero_point, dtype=torch.float64, device=node.weight.device)
    return float(accumulator_bound(node.weight, bias, zero_point, source.qmin, source.qmax))


def _carrier(node: Conv | Linear, source: Edge) -> torch.dtype:
    return torch.float32 if source.reach < 2**8 and _bound(node, source, None) < FLOAT32_EXACT else torch.float64


def _accumulators(node: Conv | Linear, source: Edge, sums: Tensor) -> Tensor:
    """Sums plus bias as int32. ConversionError where one does not fit: kernels would wrap silently. int64 of wide codes."""
    if source.wide:
        return sums.to(torch.int64) + channel_axis(node.bias.to(sums.device, torch.int64), sums.dim(), 1)
    bound = _bound(node, source, node.bias)
    wide = torch.int32 if bound <= INT32_MAX else torch.int64
    total = sums.to(wide) + channel_axis(node.bias.to(sums.device, wide), sums.dim(), 1)
    if bound > INT32_MAX and total.numel():
        low, high = int(total.min()), int(total.max())
        if low < INT32_MIN or high > INT32_MAX:
            raise ConversionError(
                f"{node.label}: an accumulator leaves int32", got=f"sums of {low} … {high}",
                expected=f"{INT32_MIN} … {INT32_MAX}",
                fix="fewer bits for the input or the weights of this layer, or leave it in float",
            )  # fmt: skip
    return total.to(torch.int32)


def _finish(node: Conv | Linear, edges: Mapping[str, Edge], acc: Tensor) -> Tensor:
    """Accumulators to codes of the output edge, or to float32 values where the output is none."""
    weight_scale = node.weight_scale.to(acc.device)
    source, target = edges[node.input], edges.get(node.output)
    if target is None:
        return acc.to(torch.float32) * channel_axis(scale_of(source, acc) * weight_scale, acc.dim(), 1)
    factor = multiplier(scale_of(source, acc), weight_scale, scale_of(target, acc))
    return requantize(acc, channel_axis(factor, acc.dim(), 1), zero_point_of(target, acc), node.low, node.high)


def _result_dtype(node: Conv | Linear, edges: Mapping[str, Edge]) -> torch.dtype:
    target = edges.get(node.output)
    return torch.float32 if target is None else storage(target)
