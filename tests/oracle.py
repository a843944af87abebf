"""The arithmetic of an integer program, stated again: numpy, Python integers and fractions, nothing of torch or truequant.

Codes are int64 arrays. Scales are float32 numbers. Every named step is rounded to float32, `rint` is half to even, and sums
of products are exact integers. Windows are enumerated one by one, axis by axis, in the plainest way.
"""

from __future__ import annotations

import decimal
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


class Norm(NamedTuple):
    """What a norm computes: see `truequant.numerics.norms`, whose words these are."""

    kind: str
    axes: tuple[int, ...]
    groups: int
    eps: float
    outside: bool
    correction: int


def norm(codes: Codes, rule: Norm, gain: Values | None, bias: Values | None, x: Qparams, y: Qparams | None) -> Values:
    """Values before they are rounded, on the scale of `y`, or of 1. Sums are Python integers, one row after another."""
    sy = np.float32(1.0 if y is None else y.scale)
    centred, result = codes - x.zero_point, np.empty(codes.shape, np.float32)
    axes = tuple(range(1, codes.ndim)) if rule.kind == "group" else tuple(a % codes.ndim for a in rule.axes)
    outer = tuple(1 if axis in axes else n for axis, n in enumerate(codes.shape))
    for at in np.ndindex(*outer):
        place = tuple(slice(None) if axis in axes else i for axis, i in enumerate(at))
        row = centred[place]
        if rule.kind != "group":
            result[place] = _norm_of_row(row, rule, gain, bias, x.scale, sy)
            continue
        width = codes.shape[1] // rule.groups
        for first in range(0, codes.shape[1], width):
            some = slice(first, first + width)
            parameters = (None if t is None else t[some] for t in (gain, bias))
            result[place][some] = _norm_of_row(row[some], rule, *parameters, x.scale, sy)
    return result


def _norm_of_row(
    row: Codes, rule: Norm, gain: Values | None, bias: Values | None, sx: float, sy: np.float32
) -> Values:  # fmt: skip
    """float32 numpy rounds each step once; what is exact or rounded in float64 is Python's."""
    numbers = row.reshape(-1).tolist()
    n, total, squares = len(numbers), sum(numbers), sum(q * q for q in numbers)
    e = float(np.float32(rule.eps / (sx * sx)))
    c, one = row.astype(np.float32), np.float32(1)
    if rule.kind == "l2":
        least = max(np.float32(rule.eps / sx), np.float32(2.0**-30))
        return c / (max(_root(float32(Fraction(squares))), least) * sy)
    if rule.kind == "rms":
        deviation = _root(float(np.float32(squares + max(e * n, 2.0**-60))))
        return (c if gain is None else c * gain) / (deviation * np.float32(float(sy) / math.sqrt(n)))
    between = n * (n - rule.correction)
    term = 2.0**-60 if rule.outside else max(e * between, 2.0**-60)
    deviation = _root(float(np.float32(float(n * squares - total * total) + term)))
    if rule.outside:
        deviation = deviation + np.float32(float(np.float32(rule.eps / sx)) * math.sqrt(between))
    mean, inverse = np.float32(total) / np.float32(n), np.float32(math.sqrt(between)) / deviation
    if rule.kind == "layer":
        scaled = ((c - mean) * inverse) * ((one if gain is None else gain) / sy)
        return scaled if bias is None else scaled + bias / sy
    factor = inverse * ((one if gain is None else gain) / sy)
    shift = np.negative(mean * factor) if bias is None else bias / sy - mean * factor
    outer = (-1, *(1,) * (row.ndim - 1))
    factor, shift = (np.broadcast_to(t, row.shape[:1]).reshape(outer) for t in (factor, shift))
    return c * factor + shift


def _root(square: float) -> np.float32:
    """The float32 nearest to the root of a float32, found among its neighbours by exact comparison."""
    guess = np.float32(math.sqrt(square))
    candidates = (np.nextafter(guess, np.float32(0)), guess, np.nextafter(guess, np.float32(np.inf)))
    for low, high in itertools.pairwise(candidates):
        middle = (Fraction(float(low)) + Fraction(float(high))) / 2
        if Fraction(square) < middle * middle:
            return low
    return candidates[-1]


def norm_codes(values: Values, y: Qparams, low: int, high: int) -> Codes:
    """`round` of a float is exact, half to even."""
    codes = [clamp(round(v) + y.zero_point, low, high) for v in values.reshape(-1).tolist()]
    return np.array(codes, np.int64).reshape(values.shape)


def exponentials(scale: float, levels: int, largest: int) -> list[int]:
    """`rint(largest * exp(-d * sx))` for d = 0 … levels - 1, with 60 digits."""
    with decimal.localcontext(decimal.Context(prec=60)):
        exact = [largest * (-d * decimal.Decimal(scale)).exp() for d in range(levels)]
        return [int(value.to_integral_value(decimal.ROUND_HALF_EVEN)) for value in exact]


def raised(codes: Codes, masks: Sequence[Codes], causal: bool, table: Sequence[int]) -> list[list[int]]:
    """The exponential of each code of each row, rows in one list; masks are broadcast to the codes."""
    rows, places = math.prod(codes.shape[:-1]), codes.shape[-1]
    shown = [np.broadcast_to(mask, codes.shape).reshape(rows, places).tolist() for mask in masks]
    found = []
    for number, row in enumerate(codes.reshape(rows, places).tolist()):
        seen = [all(mask[number][place] == 255 for mask in shown) for place in range(places)]
        if causal:
            seen = [s and place <= number % codes.shape[-2] for place, s in enumerate(seen)]
        largest = max((code for code, s in zip(row, seen, strict=True) if s), default=0)
        found.append([table[largest - code] if s else 0 for code, s in zip(row, seen, strict=True)])
    return found


def softmax(codes: Codes, masks: Sequence[Codes], causal: bool, table: Sequence[int], y: Qparams, low: int, high: int) -> Codes:
    """`clamp(rint(e / float32(float32(S) * sy)) + zy)` of each row."""
    found = []
    for row in raised(codes, masks, causal, table):
        divisor = times(float32(Fraction(max(1, sum(row)))), y.scale)
        found.append([clamp(rint(divide(float(e), divisor)) + y.zero_point, low, high) for e in row])
    return np.array(found, np.int64).reshape(codes.shape)


def weights(codes: Codes, masks: Sequence[Codes], causal: bool, table: Sequence[int]) -> Values:
    """`float32(e / float32(S))`."""
    found = []
    for row in raised(codes, masks, causal, table):
        total = float32(Fraction(max(1, sum(row))))
        found.append([divide(float(e), total) for e in row])
    return np.array(found, np.float32).reshape(codes.shape)


def attend(
    codes: Codes, values: Codes, masks: Sequence[Codes], causal: bool, table: Sequence[int], v: Qparams, y: Qparams, low: int,
    high: int,
) -> Codes:  # fmt: skip
    """`clamp(rint(float32(acc) / w) + zo)`, `w = float32(S) * float32(so / sv)`."""
    ratio, features = divide(y.scale, v.scale), values.shape[-1]
    columns = (values - v.zero_point).reshape(-1, *values.shape[-2:])
    found = []
    for number, row in enumerate(raised(codes, masks, causal, table)):
        centred = columns[number // codes.shape[-2]].T.tolist()
        divisor = times(float32(Fraction(max(1, sum(row)))), ratio)
        for feature in range(features):
            acc = sum(e * c for e, c in zip(row, centred[feature], strict=True))
            found.append(clamp(rint(divide(float32(Fraction(acc)), divisor)) + y.zero_point, low, high))
    return np.array(found, np.int64).reshape((*codes.shape[:-1], features))
