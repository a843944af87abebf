"""Conv and Linear: exact integer sums, then requantization.

torch has no fast integer matrix product on CPUs, so a sum is carried by a float that holds every partial sum exactly, whatever
the order of its terms: float32 where the layer's codes keep all of them below 2^24, else float64, whose 2^53 no layer reaches.
Accumulators are int32, as in kernels, and int64 where the input has more than 8 bits: 258 such codes can leave int32.
The factors are below 2^8, so that a product is exact even where float32 products are allowed bfloat16 or TF32 factors.
Depthwise layers sum int32 products directly, tap by tap.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.checks import label
from truequant.integer.nodes import Conv, Edge, Linear
from truequant.integer.program import IntegerProgram
from truequant.integer.shapes import output_shape
from truequant.integer.storage import CHUNK, scale_of, storage, zero_point_of
from truequant.numerics import FLOAT32_EXACT, INT32_MAX, accumulator_bound, channel_axis, multiplier, requantize

INT32_MIN = -INT32_MAX - 1


def linear(node: Linear, program: IntegerProgram, x: Tensor) -> Tensor:
    """`x` `(…, in)` of codes to `(…, out)`."""
    rows = x.reshape(-1, x.shape[-1])
    source = program.edges[node.input]
    carrier = _carrier(node, source)
    weight = node.weight.to(x.device, carrier).t()
    result = torch.empty((rows.shape[0], weight.shape[1]), dtype=_result_dtype(node, program), device=x.device)
    step = max(1, CHUNK // max(weight.shape))
    for begin in range(0, rows.shape[0], step):
        piece = slice(begin, begin + step)
        sums = _centred(rows[piece], source, carrier) @ weight
        result[piece] = _finish(node, program, _accumulators(node, source, sums))
    return result.reshape(*x.shape[:-1], weight.shape[1])


def conv(node: Conv, program: IntegerProgram, x: Tensor) -> Tensor:
    """`x` `(N, C, *space)` of codes to `(N, out, *space')`, over pieces of the batch and, for large images, of their rows."""
    source = program.edges[node.input]
    shape = output_shape(node, [tuple(x.shape)])
    depthwise = node.weight.shape[1] == 1 and node.groups == x.shape[1]
    carrier = torch.int64 if depthwise else _carrier(node, source)
    if depthwise and _bound(node, source, None) <= INT32_MAX:
        carrier = torch.int32
    weight = node.weight.to(x.device, carrier)
    result = torch.empty(shape, dtype=_result_dtype(node, program), device=x.device)
    # The largest intermediate of one image: its windows side by side, or its sums.
    elements = math.prod(shape[2:]) * (shape[1] if depthwise else x.shape[1] * math.prod(weight.shape[2:]))
    images = max(1, CHUNK // elements)
    rows = shape[2] if elements <= CHUNK else max(1, CHUNK * shape[2] // elements)
    stride, reach = node.stride[0], node.dilation[0] * (weight.shape[2] - 1) + 1
    for first in range(0, shape[0], images):
        padded = _padded(_centred(x[first : first + images], source, carrier), node)
        for top in range(0, shape[2], rows):
            bottom = min(top + rows, shape[2])
            window = padded[:, :, top * stride : (bottom - 1) * stride + reach]
            sums = (_tap_sums if depthwise else _window_sums)(node, window, weight)
            codes = _finish(node, program, _accumulators(node, source, sums))
            result[first : first + images, :, top:bottom] = codes
    return result


def _centred(x: Tensor, source: Edge, carrier: torch.dtype) -> Tensor:
    """`xq - zx`, the integers that are summed."""
    x = x.to(carrier)
    return x - source.zero_point if source.zero_point else x


def _padded(x: Tensor, node: Conv) -> Tensor:
    """Real 0 around, which is integer 0 here."""
    pads = [side for pair in reversed(node.padding) for side in pair]
    return torch.nn.functional.pad(x, pads) if any(pads) else x


def _window_sums(node: Conv, x: Tensor, weight: Tensor) -> Tensor:
    """`(n, out, *space')`: each window's elements as one column, times the weight as a matrix."""
    for axis, (size, stride, dilation) in enumerate(zip(weight.shape[2:], node.stride, node.dilation, strict=True), start=2):
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    rank, batch, groups = weight.dim() - 2, x.shape[0], node.groups
    space = x.shape[2 : 2 + rank]
    columns = x.permute(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    columns = columns.reshape(batch, groups, math.prod(weight.shape[1:]), math.prod(space))
    matrix = weight.reshape(groups, -1, columns.shape[2])
    # Without groups a matrix times a batch of matrices: torch then copies neither.
    sums = matrix[0] @ columns[:, 0] if groups == 1 else matrix @ columns
    return sums.reshape(batch, -1, *space)


def _tap_sums(node: Conv, x: Tensor, weight: Tensor) -> Tensor:
    """`(n, out, *space')` of the dtype of `x`: one multiplication and addition of whole images for each tap."""
    x = x.repeat_interleave(weight.shape[0] // x.shape[1], dim=1)
    fields = tuple(zip(weight.shape[2:], node.stride, node.dilation, x.shape[2:], strict=True))
    space = [(length - dilation * (size - 1) - 1) // stride + 1 for size, stride, dilation, length in fields]
    sums = x.new_zeros((*x.shape[:2], *space))
    factors = weight.reshape(weight.shape[0], -1)
    for index, tap in enumerate(itertools.product(*map(range, weight.shape[2:]))):
        at = [slice(None), slice(None)]
        for position, count, (_, stride, dilation, _) in zip(tap, space, fields, strict=True):
            at.append(slice(position * dilation, position * dilation + (count - 1) * stride + 1, stride))
        sums.addcmul_(x[tuple(at)], factors[:, index].reshape(-1, *[1] * len(space)))
    return sums


def _bound(node: Conv | Linear, source: Edge, bias: Tensor | None) -> float:
    zero_point = torch.tensor(source.zero_point, dtype=torch.float64, device=node.weight.device)
    return float(accumulator_bound(node.weight, bias, zero_point, source.qmin, source.qmax))


def _carrier(node: Conv | Linear, source: Edge) -> torch.dtype:
    small = max(source.qmax - source.zero_point, source.zero_point - source.qmin) < 2**8
    return torch.float32 if small and _bound(node, source, None) < FLOAT32_EXACT else torch.float64


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
                f"{label(node)}: an accumulator leaves int32", got=f"sums of {low} … {high}",
                expected=f"{INT32_MIN} … {INT32_MAX}",
                fix="fewer bits for the input or the weights of this layer, or leave it in float",
            )  # fmt: skip
    return total.to(torch.int32)


def _finish(node: Conv | Linear, program: IntegerProgram, acc: Tensor) -> Tensor:
    """Accumulators to codes of the output edge, or to float32 values where the output is none."""
    weight_scale = node.weight_scale.to(acc.device)
    source, target = program.edges[node.input], program.edges.get(node.output)
    if target is None:
        return acc.to(torch.float32) * channel_axis(scale_of(source, acc) * weight_scale, acc.dim(), 1)
    factor = multiplier(scale_of(source, acc), weight_scale, scale_of(target, acc))
    return requantize(acc, channel_axis(factor, acc.dim(), 1), zero_point_of(target, acc), node.low, node.high)


def _result_dtype(node: Conv | Linear, program: IntegerProgram) -> torch.dtype:
    target = program.edges.get(node.output)
    return torch.float32 if target is None else storage(target)
