"""Softmax and attention on codes: exponentials by a table, exact sums, one division.

    T[d] = rint(largest * exp(-d * sx))        computed once in float64, then stored
    e    = T[max - x]                          of a row of codes; hidden codes count as 0, and their e is 0
    S    = max(sum(e), 1)                      an exact integer

    softmax          y = clamp(rint(e / float32(float32(S) * sy)) + zy)
    times values     acc = sum(e * (v - zv)) ;  w = float32(S) * float32(so / sv) ;  y = clamp(rint(float32(acc) / w) + zo)
    weights          p = e / float32(S)

Scores lie on unsigned codes, so that a hidden code and the lowest one are both 0. Times values, e is a byte relative to its
row's maximum. Each named float32 is rounded once; acc and S are integers, which are rounded once where they pass 2^24.
"""

from __future__ import annotations

import torch
from torch import Tensor

from truequant.numerics.affine import Bound, clamp
from truequant.numerics.bounds import FLOAT32_EXACT

BYTE = 255
"""The largest exponential of weights that multiply values, and what a mask has where it shows a place."""


def exponentials(scale: Tensor, levels: int, largest: int) -> Tensor:
    """`T`, float64 `(levels,)`, of scores with that scale."""
    steps = torch.arange(levels, dtype=torch.float64)
    return torch.round(largest * torch.exp(-steps * scale.detach().double().cpu()))


def raised(codes: Tensor, shown: Tensor | None, table: Tensor) -> Tensor:
    """`e` of rows of codes, in the dtype of the table. codes: integers; shown: 255 where a place is seen and 0 where not.

    Of a byte of a mask all bits count, as kernels take them: `x & mask`, and `e & mask` for bytes, the lowest bit for others.
    """
    if shown is not None:
        codes = codes & shown
    steps = (codes.amax(-1, keepdim=True) - codes).long()
    found = table.to(codes.device)[steps]
    if shown is None:
        return found
    if table.dtype == torch.uint8:
        return found & shown.to(torch.uint8)
    return found * (shown & 1).to(found.dtype)


def row_sums(exponentials: Tensor, largest: int) -> Tensor:
    """`float32(S)` of each row, `(…, 1)`."""
    exact = torch.float32 if exponentials.shape[-1] * largest <= FLOAT32_EXACT else torch.float64
    return exponentials.to(exact).sum(-1, keepdim=True).clamp(min=1).float()


def softmax(exponentials: Tensor, sums: Tensor, scale: Tensor, zero_point: Tensor, low: Bound, high: Bound) -> Tensor:
    """Codes of a softmax, float32."""
    return clamp(torch.round(exponentials.float() / (sums * scale)) + zero_point, low, high)


def attended(
    acc: Tensor, sums: Tensor, values_scale: Tensor, scale: Tensor, zero_point: Tensor, low: Bound, high: Bound
) -> Tensor:
    """Codes of weights times values, float32. acc: integers carried by any dtype."""
    divisor = sums * (scale.float() / values_scale.float())
    return clamp(torch.round(acc.float() / divisor) + zero_point, low, high)


def causal(rows: int, columns: int, device: torch.device) -> Tensor:
    """The mask, `(rows, columns)` bytes, by which a row sees the places up to its own number."""
    seen = torch.ones(rows, columns, dtype=torch.bool, device=device).tril()
    return seen.to(torch.uint8) * BYTE
