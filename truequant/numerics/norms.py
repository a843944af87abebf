"""Norms of codes: layer, RMS, group and L2 norm, whose sums are sums of integers.

`c = x - zx`, over a row of n elements (D = n; of a group norm the elements of one group):

    S1 = sum(c), S2 = sum(c * c)                                          exact, in any order
    layer, group:  R = sqrt(float32(n * S2 - S1 * S1 + t)) + o            exact integers, the sum with t in float64
                   m = float32(S1) / n,  r = K / R,  K = float32(sqrt(n * (n - correction)))
      layer:       y = clamp(rint(((c - m) * r) * G + B) + zy)            G = gamma / sy, B = beta / sy
      group:       a = r * G, b = B - m * a                               one pair a channel
                   y = clamp(rint((c * a) + b) + zy)
    rms:           w = sqrt(float32(S2 + t)) * float32(sy / sqrt(n))
                   y = clamp(rint((c * gamma) / w) + zy)
    l2:            w = max(sqrt(float32(S2)), t) * sy
                   y = clamp(rint(c / w) + zy)

Every named step that is not said to be exact or float64 is one float32 rounding. `e = float32(eps / sx^2)`; t is `e * K^2`,
`e * n` and `float32(eps / sx)`. Where eps is added to the deviation and not to the variance, t is 0 and o = eps / sx * K. A
result that is no code, `y` as a value, is the same with `sy = 1`, before the rounding.

t has a floor under which it changes nothing: a row of equal codes has `c - m = 0`, and nothing is divided by 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from truequant.numerics.affine import Bound, clamp
from truequant.numerics.bounds import FLOAT32_EXACT, FLOAT64_EXACT

NormKind = Literal["layer", "rms", "l2", "group"]
FLOOR = 2.0**-60
"""The least that is added to a sum of squares: float64 holds it beside no integer but 0."""
INT64_EXACT = 2**63


@dataclass(frozen=True, slots=True)
class NormRule:
    """What a norm computes, apart from its gain and bias.

    axes: negative, ascending: those over which a row runs; of a group norm empty.
    groups: of a group norm, into how many the channels, axis 1, are parted; else 0.
    eps: as the float model has it, finite and not negative. outside: it is added to the deviation, not to the variance.
    correction: what is taken from the count under the variance: 1 where the float model's deviation is the unbiased one.
    """

    kind: NormKind
    axes: tuple[int, ...]
    groups: int
    eps: float
    outside: bool = False
    correction: int = 0

    def count(self, shape: Sequence[int]) -> int:
        """Elements of a row of a tensor of that shape."""
        count = 1
        for axis in range(1, len(shape)) if self.kind == "group" else self.axes:
            count *= shape[axis]
        return count // self.groups if self.kind == "group" else count


@dataclass(frozen=True, slots=True)
class NormConstants:
    """What the rules divide by, multiply with and add, computed once for all rows.

    term: t, 0-d, float64 (of l2: float32); outside: o, or None for 0; numerator: K; unit: `sy / sqrt(n)` or `sy`, 0-d.
    gain: G or gamma, bias: B, None for 0 and, of rms and l2, for 1; in the shape of the parameters.
    """

    count: Tensor
    term: Tensor
    outside: Tensor | None
    numerator: Tensor
    unit: Tensor
    gain: Tensor | None
    bias: Tensor | None


def norm_constants(
    rule: NormRule, count: int, gain: Tensor | None, bias: Tensor | None, input_scale: Tensor, output_scale: Tensor
) -> NormConstants:
    """Constants of rows of `count` elements, on the device of the scales, which are 0-d float32 tensors."""
    sx, sy = input_scale.double(), output_scale.float()
    n, eps = torch.full_like(sx, count), torch.full_like(sx, rule.eps)
    between = n * (n - rule.correction)
    numerator = torch.sqrt(between).float()
    deviation, variance = (eps / sx).float(), (eps / (sx * sx)).float().double()
    outside = (deviation.double() * torch.sqrt(between)).float() if rule.outside else None
    least = torch.full_like(sx, FLOOR)
    gain = None if gain is None else gain.float()
    match rule.kind:
        case "l2":
            term, unit = torch.maximum(deviation, torch.sqrt(least).float()), sy
        case "rms":
            term, unit = torch.maximum(variance * n, least), (sy.double() / torch.sqrt(n)).float()
        case _:
            term, unit = least if rule.outside else torch.maximum(variance * between, least), sy
            gain = (torch.ones_like(sy) if gain is None else gain) / sy
    return NormConstants(n.float(), term, outside, numerator, unit, gain, None if bias is None else bias.float() / sy)


def normalized(
    c: Tensor, rule: NormRule, gain: Tensor | None, bias: Tensor | None, input_scale: Tensor, output_scale: Tensor, reach: int
) -> Tensor:
    """`y` before it is rounded, float32, of the shape of `c`.

    c: codes less their zero point, float32, `|c| <= reach`. gain, bias: of the shape of the normalized axes, or `(C,)`; None
    for 1 and 0. The rows must have an element, and `too_long` must hold for none.
    """
    known = norm_constants(rule, rule.count(c.shape), gain, bias, input_scale, output_scale)
    shape, axes = c.shape, rule.axes
    if rule.kind == "group":
        c, axes = c.reshape(shape[0], rule.groups, rule.count(shape)), (-1,)
    inverse, mean = _of_rows(c, rule, axes, known, reach)
    if rule.kind == "group":
        return _by_channel(c.reshape(shape), rule, known, inverse, mean)
    gain, bias = (None if t is None else over_rows(t, axes) for t in (known.gain, known.bias))
    if mean is None:
        return (c if gain is None else c * gain) / inverse
    assert gain is not None
    y = ((c - mean) * inverse) * gain
    return y if bias is None else y + bias


def norm_codes(y: Tensor, zero_point: Tensor, low: Bound, high: Bound) -> Tensor:
    """`clamp(rint(y) + zy)`, float32."""
    return clamp(torch.round(y) + zero_point, low, high)


def _of_rows(
    c: Tensor, rule: NormRule, axes: tuple[int, ...], known: NormConstants, reach: int
) -> tuple[Tensor, Tensor | None]:
    """r and m of each row, or w and None."""
    count = rule.count(c.shape) if rule.kind != "group" else c.shape[-1]
    squares = _exact_sum(c * c if reach**2 < FLOAT32_EXACT else c.double().square(), axes, count * reach**2)
    if rule.kind == "l2":
        return torch.maximum(root(squares.float()), known.term) * known.unit, None
    if rule.kind == "rms":
        return root((squares.double() + known.term).float()) * known.unit, None
    sums = _exact_sum(c, axes, count * reach)
    carrier = torch.float64 if (count * reach) ** 2 < FLOAT64_EXACT else torch.int64
    whole, linear = squares.to(carrier), sums.to(carrier)
    spread = whole * count - linear * linear
    deviation = root((spread.double() + known.term).float())
    if known.outside is not None:
        deviation = deviation + known.outside
    return known.numerator / deviation, sums.float() / known.count


def _by_channel(c: Tensor, rule: NormRule, known: NormConstants, inverse: Tensor, mean: Tensor | None) -> Tensor:
    """Of a group norm: `(c * a) + b`."""
    assert known.gain is not None
    assert mean is not None
    grouped = (1, rule.groups, -1)
    channels = (c.shape[0], c.shape[1], *(1,) * (c.dim() - 2))
    factor = inverse * (known.gain.reshape(grouped) if known.gain.dim() else known.gain)
    shift = mean * factor
    shift = -shift if known.bias is None else known.bias.reshape(grouped) - shift
    width = c.shape[1] // rule.groups
    factor, shift = (t.expand(-1, -1, width).reshape(channels) for t in (factor, shift))
    return c * factor + shift


def _exact_sum(values: Tensor, axes: tuple[int, ...], bound: int) -> Tensor:
    """A sum of integers that is at most `bound`, in a dtype that holds it in any order; the axes stay with length 1."""
    return values.sum(axes, keepdim=True, dtype=torch.float32 if bound < FLOAT32_EXACT else torch.float64)


def root(values: Tensor) -> Tensor:
    """The float32 square root as IEEE defines it, which torch's own of float32 is not. That of float64 need not be either: no
    root of a float32 lies so near a tie that it would show.
    """
    return torch.sqrt(values.double()).float()


def over_rows(parameter: Tensor, axes: Sequence[int]) -> Tensor:
    """A parameter of the shape of `axes`, in a shape that broadcasts against what has them; a 0-d one stays as it is."""
    if parameter.dim() == 0:
        return parameter
    sizes = dict(zip(axes, parameter.shape, strict=True))
    return parameter.reshape([sizes.get(axis, 1) for axis in range(min(axes), 0)])


def too_long(count: int, reach: int) -> bool:
    """Whether sums over `count` elements could leave the integers that the rules compute with."""
    return (count * reach) ** 2 >= INT64_EXACT or count * reach**2 >= FLOAT64_EXACT
