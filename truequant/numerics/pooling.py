"""Averages over windows that do not all hold the same number of elements, by a named rule of the target."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from truequant.errors import ArgumentError
from truequant.numerics.affine import Bound, clamp, dequantize, quantize
from truequant.schemes import ArithmeticRule


def window_average(
    codes: Tensor, x_params: tuple[Tensor, Tensor], y_params: tuple[Tensor, Tensor], kernel: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], ceil_mode: bool, low: Bound, high: Bound, rule: ArithmeticRule,
) -> Tensor:  # fmt: skip
    """Codes, float32, of the mean of those elements of each window that lie inside the input.

    codes: float32 `(N, C, *space)`; windows lie as torch's average pooling lays them, the padding is not counted.
    onnxruntime: t = the float32 sum of float32((q - zx) * sx), last axis fastest; m = float32(t / n);
    q = clamp(rint(float32(float32(m / sy) + zy))). portable: the same m, quantized.
    """
    (sy, zy), rank = y_params, len(kernel)
    fields = tuple(zip(codes.shape[-rank:], kernel, stride, padding, strict=True))
    counts = [pooled_length(n, k, s, p, 1, ceil_mode) for n, k, s, p in fields]
    sides = [(p, max(0, (count - 1) * s + k - n - p)) for (n, k, s, p), count in zip(fields, counts, strict=True)]
    pads = [side for pair in reversed(sides) for side in pair]
    values = torch.nn.functional.pad(dequantize(codes, *x_params), pads)
    inside = torch.nn.functional.pad(torch.ones(codes.shape[-rank:], device=codes.device), pads)
    total, members = torch.zeros((), device=codes.device), torch.zeros((), device=codes.device)
    for tap in itertools.product(*map(range, kernel)):
        place: tuple[Any, ...] = (..., *(slice(t, t + (n - 1) * s + 1, s) for t, n, s in zip(tap, counts, stride, strict=True)))
        total, members = total + values[place], members + inside[place]  # outside the input both add 0
    if rule not in _FROM_MEAN:
        raise ArgumentError(
            f"no arithmetic rule {rule!r} of averages over uneven windows",
            got=repr(rule),
            expected=" or ".join(map(repr, _FROM_MEAN)),
        )
    return _FROM_MEAN[rule](total / members, sy, zy, low, high)


_FROM_MEAN: dict[ArithmeticRule, Callable[[Tensor, Tensor, Tensor, Bound, Bound], Tensor]] = {
    "onnxruntime": lambda mean, sy, zy, low, high: clamp(torch.round(mean / sy + zy), low, high),
    "portable": quantize,
}
"""Codes of a mean, by the rule."""


def pooled_length(length: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Windows along one axis, as torch counts them: in ceil mode the last one starts inside the input or its left padding."""
    span = length + 2 * padding - dilation * (kernel - 1) - 1
    count = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= length + padding else count
