"""The arithmetic of an integer program, stated again: numpy, Python integers and fractions, nothing of torch or truequant.

Codes are int64 arrays. Scales are float32 numbers. Every named step is rounded to float32, `rint` is half to even, and sums
of products are exact integers. Windows are enumerated one by one, axis by axis, in the plainest way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

Codes = np.ndarray[Any, np.dtype[np.int64]]
Values = np.ndarray[Any, np.dtype[np.float32]]


class Qparams(NamedTuple):
    scale: float
    zero_point: int
    qmin: int
    qmax: int


def float32(x: Fraction) -> float:
    """The float32 nearest to an exact number, ties to even, subnormal where it is small, infinite where it is large."""
    top, bottom = abs(x.numerator), x.denominator
    if top == 0:
        return 0.0
    exponent = top.bit_length() - bottom.bit_length()
    exponent -= (top << max(-exponent, 0)) < (bottom << max(exponent, 0))  # 2^exponent <= |x| < 2^(exponent + 1)
    shift = max(exponent, -126) - 23  # the unit in the last place is 2^shift
    bottom <<= max(shift, 0)
    digits, rest = divmod(top << max(-shift, 0), bottom)
    digits += 2 * rest > bottom or (2 * rest == bottom and digits % 2)
    size = math.ldexp(digits, shift) if digits.bit_length() + shift <= 128 else math.inf
    return size if x > 0 else -size


def fma(a: float, b: float, c: float) -> float:
    """`float32(a * b + c)` with one rounding."""
    return float32(Fraction(a) * Fraction(b) + Fraction(c))


def divide(a: float, b: float) -> float:
    """`float32(a / b)` with one rounding."""
    return float32(Fraction(a) / Fraction(b))


def times(a: float, b: float) -> float:
    """`float32(a * b)` with one rounding."""
    return float32(Fraction(a) * Fraction(b))


def rint(x: float) -> int:
    """The nearest integer, ties to even; beyond every code for an infinity."""
    return round(Fraction(x)) if abs(x) < math.inf else 2**200 if x > 0 else -(2**200)


def clamp(x: int, low: int, high: int) -> int:
    return low if x < low else high if x > high else x


def each(function: Callable[..., int], *arrays: Codes) -> Codes:
    """`function` of every element of broadcast arrays, once for each distinct combination."""
    known: dict[tuple[int, ...], int] = {}
    broadcast = np.broadcast_arrays(*arrays)
    result = np.empty(broadcast[0].shape, np.int64)
    for index in np.ndindex(*result.shape):
        key = tuple(int(array[index]) for array in broadcast)
        if key not in known:
            known[key] = function(*key)
        result[index] = known[key]
    return result


def quantize(x: Values, y: Qparams) -> Codes:
    def code(value: float) -> int:
        quotient = value if abs(value) == math.inf else divide(value, y.scale)
        return clamp(rint(quotient) + y.zero_point, y.qmin, y.qmax)

    result = np.empty(x.shape, np.int64)
    for index in np.ndindex(*x.shape):
        result[index] = code(float(x[index])) if x[index] == x[index] else clamp(0, y.qmin, y.qmax)
    return result


def dequantize(codes: Codes, x: Qparams) -> Values:
    values = {int(q): np.float32(times(int(q) - x.zero_point, x.scale)) for q in np.unique(codes)}
    return np.array([values[int(q)] for q in codes.reshape(-1)], np.float32).reshape(codes.shape)


def conv(
    codes: Codes, x: Qparams, weight: Codes, bias: Codes, stride: Sequence[int], padding: Sequence[tuple[int, int]],
    dilation: Sequence[int], groups: int,
) -> Codes:  # fmt: skip
    """Accumulators: `sum((xq - zx) * wq) + bq`, where the padding has the value 0."""
    outputs, per_group, *kernel = weight.shape
    padded = np.pad(codes - x.zero_point, [(0, 0), (0, 0), *padding])
    counts = [
        (size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    result = np.empty((codes.shape[0], outputs, *counts), np.int64)
    for channel in range(outputs):
        first = channel // (outputs // groups) * per_group
        for at in itertools.product(*map(range, counts)):
            taps = tuple(
                slice(i * s, i * s + d * (k - 1) + 1, d) for i, s, d, k in zip(at, stride, dilation, kernel, strict=True)
            )
            window = padded[(slice(None), slice(first, first + per_group), *taps)]
            result[(slice(None), channel, *at)] = (window * weight[channel]).sum(tuple(range(1, window.ndim))) + bias[channel]
    return result


def linear(codes: Codes, x: Qparams, weight: Codes, bias: Codes) -> Codes:
    """Accumulators along the last axis."""
    rows = (codes - x.zero_point).reshape(-1, codes.shape[-1])
    sums = [[int((row * column).sum()) + int(b) for column, b in zip(weight, bias, strict=True)] for row in rows]
    return np.array(sums, np.int64).reshape(*codes.shape[:-1], weight.shape[0])


def matmul(left: Codes, right: Codes, a: Qparams, b: Qparams) -> Codes:
    """Accumulators of a product of two tensors of codes: row times column, axes before the last two broadcast."""
    outer = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    x = np.broadcast_to(left - a.zero_point, (*outer, *left.shape[-2:]))
    w = np.broadcast_to(right - b.zero_point, (*outer, *right.shape[-2:]))
    result = np.empty((*outer, left.shape[-2], right.shape[-1]), np.int64)
    for at in np.ndindex(*outer):
        for i, row in enumerate(x[at]):
            for j in range(w.shape[-1]):
                result[(*at, i, j)] = sum(int(p) * int(q) for p, q in zip(row, w[at][:, j], strict=True))
    return result


def requantize(acc: Codes, x: Qparams, weight_scale: Sequence[float], y: Qparams, low: int, high: int, axis: int) -> Codes:
    """Codes of accumulators, whose channels lie on `axis`: int32 to float32, times M, rint, zero point, clamp."""
    factors = [divide(times(x.scale, sw), y.scale) for sw in weight_scale]
    channels = np.arange(acc.shape[axis]).reshape([-1 if i == axis % acc.ndim else 1 for i in range(acc.ndim)])

    def code(value: int, channel: int) -> int:
        product = times(float32(Fraction(value)), factors[channel if len(factors) > 1 else 0])
        return clamp(rint(product) + y.zero_point, low, high)

    return each(code, acc, channels)


def scale_sums(acc: Codes, x: Qparams, weight_scale: Sequence[float], axis: int) -> Values:
    """`float32(acc) * float32(sx * sw)`."""
    products = [times(x.scale, sw) for sw in weight_scale]
    result = np.empty(acc.shape, np.float32)
    for index in np.ndindex(*acc.shape):
        channel = index[axis] if len(products) > 1 else 0
        result[index] = times(float32(Fraction(int(acc[index]))), products[channel])
    return result


def add(left: Codes, right: Codes, a: Qparams, b: Qparams, y: Qparams, low: int, high: int, rule: str) -> Codes:
    ra, rb = divide(a.scale, y.scale), divide(b.scale, y.scale)
    constant = float32(y.zero_point - Fraction(fma(ra, a.zero_point, times(rb, b.zero_point))))

    inner = {q: fma(rb, q, constant) for q in map(int, np.unique(right))}
    x = {q: Fraction(times(q - a.zero_point, a.scale)) for q in map(int, np.unique(left))}
    w = {q: Fraction(times(q - b.zero_point, b.scale)) for q in map(int, np.unique(right))}

    def fused(p: int, q: int) -> int:
        return clamp(rint(fma(ra, p, inner[q])), low, high)

    def portable(p: int, q: int) -> int:
        total = float32(x[p] + w[q])
        return clamp(rint(divide(total, y.scale)) + y.zero_point, low, high)

    return each({"onnxruntime": fused, "portable": portable}[rule], left, right)


def sub(left: Codes, right: Codes, a: Qparams, b: Qparams, y: Qparams, low: int, high: int) -> Codes:
    """Dequantize, subtract, quantize, each rounded to float32."""

    def code(p: int, q: int) -> int:
        difference = float32(Fraction(times(p - a.zero_point, a.scale)) - Fraction(times(q - b.zero_point, b.scale)))
        return clamp(rint(divide(difference, y.scale)) + y.zero_point, low, high)

    return each(code, left, right)


def mul(left: Codes, right: Codes, a: Qparams, b: Qparams, y: Qparams, low: int, high: int, rule: str) -> Codes:
    factor = divide(times(a.scale, b.scale), y.scale)

    def scaled(p: int, q: int) -> int:
        product = times(factor, (p - a.zero_point) * (q - b.zero_point))
        return clamp(rint(float32(Fraction(product) + y.zero_point)), low, high)

    def portable(p: int, q: int) -> int:
        product = times(times(p - a.zero_point, a.scale), times(q - b.zero_point, b.scale))
        return clamp(rint(divide(product, y.scale)) + y.zero_point, low, high)

    return each({"onnxruntime": scaled, "portable": portable}[rule], left, right)


def table(codes: Codes, entries: Sequence[int], x: Qparams) -> Codes:
    return each(lambda q: entries[q - x.qmin], codes)


def tabulate(function: Callable[[float], float], x: Qparams, y: Qparams) -> list[int]:
    """Entries of a table: `function` in float64, one entry for each code."""
    values = (function((q - x.zero_point) * x.scale) / y.scale for q in range(x.qmin, x.qmax + 1))
    return [clamp(round(value) + y.zero_point, y.qmin, y.qmax) for value in values]


def global_average(codes: Codes, axes: Sequence[int], keepdim: bool, x: Qparams, y: Qparams, low: int, high: int) -> Codes:
    count = int(np.prod([codes.shape[axis] for axis in axes]))
    factor = divide(x.scale, times(y.scale, count))
    sums = (codes - x.zero_point).sum(axis=tuple(axes), keepdims=keepdim)
    return each(lambda acc: clamp(rint(times(float32(Fraction(acc)), factor)) + y.zero_point, low, high), np.asarray(sums))


def average_pool(
    codes: Codes, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool, x: Qparams,
    y: Qparams, low: int, high: int, rule: str,
) -> Codes:  # fmt: skip
    """The mean of the codes of each window that lie inside, summed in float32, last axis fastest."""
    rank = len(kernel)
    places = window_places(codes.shape[-rank:], kernel, stride, padding, (1,) * rank, ceil_mode)
    result = np.empty((*codes.shape[:-rank], *map(len, places)), np.int64)
    for at in np.ndindex(*result.shape):
        total, members = 0.0, 0
        for place in itertools.product(*(places[axis][i] for axis, i in enumerate(at[-rank:]))):
            value = times(int(codes[(*at[:-rank], *place)]) - x.zero_point, x.scale)
            total, members = float32(Fraction(total) + Fraction(value)), members + 1
        quotient = divide(divide(total, members), y.scale)
        shifted = float32(Fraction(quotient) + y.zero_point)
        code = rint(shifted) if rule == "onnxruntime" else rint(quotient) + y.zero_point
        result[at] = clamp(code, low, high)
    return result


def window_places(
    lengths: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil_mode: bool,
) -> list[list[list[int]]]:  # fmt: skip
    """For each axis and each window along it, the places inside the input."""
    places = []
    for length, k, s, p, d in zip(lengths, kernel, stride, padding, dilation, strict=True):
        span = Fraction(length + 2 * p - d * (k - 1) - 1, s)
        count = (-(-span.numerator // span.denominator) if ceil_mode else span.numerator // span.denominator) + 1
        if ceil_mode and (count - 1) * s - p >= length:  # the last window would begin behind the input
            count -= 1
        places.append([[j for t in range(k) if 0 <= (j := i * s - p + t * d) < length] for i in range(count)])
    return places


def max_pool(
    codes: Codes, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil_mode: bool, lowest: int,
) -> Codes:  # fmt: skip
    """The largest of the codes of each window that lie inside; `lowest` for a window that holds none."""
    rank = len(kernel)
    places = window_places(codes.shape[-rank:], kernel, stride, padding, dilation, ceil_mode)
    result = np.full((*codes.shape[:-rank], *map(len, places)), lowest, np.int64)
    for at in itertools.product(*(range(len(axis)) for axis in places)):
        inside = [places[axis][i] for axis, i in enumerate(at)]
        if all(inside):
            result[(..., *at)] = codes[(..., *np.ix_(*inside))].max(axis=tuple(range(-rank, 0)))
    return result


def pad(codes: Codes, padding: Sequence[tuple[int, int]], x: Qparams) -> Codes:
    before = codes.ndim - len(padding)
    return np.pad(codes, [(0, 0)] * before + list(padding), constant_values=x.zero_point)


def reshape(codes: Codes, shape: Sequence[int]) -> Codes:
    sizes = [codes.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    if -1 in sizes and codes.size == 0:  # numpy cannot divide by an empty axis that is kept
        kept = [axis for axis, size in enumerate(shape) if size == 0]
        rest = int(np.prod([size for axis, size in enumerate(codes.shape) if axis not in kept]))
        named = int(np.prod([size for axis, size in enumerate(shape) if axis not in kept and size != -1]))
        sizes[sizes.index(-1)] = rest // named
    return codes.reshape(sizes)


def upsample(codes: Codes, factors: Sequence[int]) -> Codes:
    """Place i of the result is place i // factor of the input."""
    first = codes.ndim - len(factors)
    for axis, factor in enumerate(factors, start=first):
        codes = np.take(codes, [i // factor for i in range(codes.shape[axis] * factor)], axis)
    return codes


def depth_to_space(codes: Codes, block: Sequence[int], phases_first: bool = False) -> Codes:
    """`y[n, c, i, j] = x[n, (c * b0 + i % b0) * b1 + j % b1, i // b0, j // b1]`, for any number of axes;
    phases first: `x[n, ((i % b0) * b1 + j % b1) * C + c, …]` of the C channels of y.
    """
    depth = math.prod(block)
    shape = (codes.shape[0], codes.shape[1] // depth, *(n * b for n, b in zip(codes.shape[2:], block, strict=True)))
    result = np.zeros(shape, np.int64)
    for place in np.ndindex(*shape):
        channel = 0 if phases_first else place[1]
        for i, b in zip(place[2:], block, strict=True):
            channel = channel * b + i % b
        if phases_first:
            channel = channel * shape[1] + place[1]
        source = tuple(i // b for i, b in zip(place[2:], block, strict=True))
        result[place] = codes[(place[0], channel, *source)]
    return result
