"""The arithmetic of norms, softmax and attention, stated again as `tests.oracle` states the rest."""

from __future__ import annotations

import decimal
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from tests.oracle import Codes, Qparams, Values, clamp, divide, float32, rint, times


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
