"""Searches for a grid, and values on grids in evaluation: by compiled kernels where they can, else in plain torch.

What has None for an answer is left to the caller, who has the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from truequant import numerics
from truequant.kernels.chosen import _native
from truequant.schemes import QuantScheme

_KEYS = (0x9E3779B97F4A7C15 - (1 << 64), 0xD6E8FEB86659FD93 - (1 << 64))
"""Odd numbers, as int64 has them."""
_AT_ONCE = 1 << 20


def _answer(y: Any) -> Any:
    return None if y is NotImplemented else y


def least_error(rows: Tensor, scales: Tensor, zero_points: Tensor, qmin: float, qmax: float) -> Tensor | None:
    """For each row of values the first of its grids with the least squared error, an index as int64; NaN counts for nothing.

    rows: float32, `(R, N)`; scales, zero_points: float32, `(R, K)`.
    """
    if (native := _native(rows)) is None:
        return None
    found: Tensor | None = _answer(
        native.least_error(rows.contiguous(), scales.contiguous(), zero_points.contiguous(), qmin, qmax)
    )
    return found


def is_plain(x: Tensor) -> bool:
    """Whether the bits of `x` can be asked for: it is no subclass, and nothing traces, fakes, batches or records ops."""
    watched = torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None
    return type(x) in (Tensor, torch.nn.Parameter) and not x.is_meta and not watched


@torch.no_grad()
def fingerprint(x: Tensor) -> int:
    """A number that tells the bits of a float32 tensor from others, wherever and in whatever object they lie.

    On a device the host waits for it.
    """
    if (native := _native(x)) is not None and (found := native.fingerprint(x.detach().contiguous())) is not NotImplemented:
        return int(found)
    words = x.detach().contiguous().view(torch.int32).reshape(-1)
    place = torch.arange(min(_AT_ONCE, words.numel()), device=x.device)
    keys = (place * 2 + 1) * _KEYS[0]
    keys = keys ^ (keys >> 29)
    total = 0
    for part in words.split(_AT_ONCE):
        mixed = (part.long() + keys[: len(part)]) * _KEYS[1]
        mixed = (mixed ^ (mixed >> 32)) * _KEYS[0]
        total = (total * 31 + int((mixed ^ (mixed >> 29)).sum())) & (1 << 64) - 1
    return total


def weight_on_grid(weight: Tensor, scale: Tensor, scheme: QuantScheme, group: int) -> Tensor | None:
    """`dequantize(quantize(weight))` of zero point 0, float32, without gradients; group: how many share a scale, or 0."""
    return _weight(weight, scale, scheme, group, codes=False)


def weight_codes(weight: Tensor, scale: Tensor, scheme: QuantScheme, group: int) -> Tensor | None:
    """Its codes as int8."""
    return _weight(weight, scale, scheme, group, codes=True)


def _weight(weight: Tensor, scale: Tensor, scheme: QuantScheme, group: int, *, codes: bool) -> Tensor | None:
    if (native := _native(weight)) is None:
        return None
    y: Tensor | None = _answer(native.weight_on_grid(weight.detach(), scale.detach(), scheme.qmin, scheme.qmax, group, codes))
    return y


def fake_quantize_tokens(x: Tensor, qmax: int) -> Tensor:
    """`dequantize(quantize(x))` of every token on its own grid, of the dtype of `x`, without gradients."""
    if (native := _native(x)) is not None and (y := native.tokens_on_grid(x.detach(), qmax)) is not NotImplemented:
        return y  # type: ignore[no-any-return]
    codes, scale = numerics.token_codes(x.float(), qmax)
    return (codes * scale + 0.0).to(x.dtype)  # a code of -0 is 0


def dynamic_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, qmax: int) -> Tensor:
    """`numerics.dynamic_linear`, `codes` being int8 or float32.

    A kernel adds the products of groups in their order, the reference in that of a matrix product in float64: both are exact
    where the scales of a row lie within a factor of 2^9 / groups, and elsewhere agree but for the rounding of float64.
    """
    if scale.shape[1] > 1 and codes.dtype == torch.int8 and (native := _native(x)) is not None:
        with torch.no_grad():
            y = native.group_linear(x.detach().contiguous(), codes.contiguous(), scale.contiguous(), bias, qmax)
        if y is not NotImplemented:
            return y  # type: ignore[no-any-return]
    return numerics.dynamic_linear(x, codes.float(), scale, bias, qmax)
