"""Histograms whose bins are powers of two wide: widths nest, so that counts of parts add up to those of the whole exactly.

A row of `2 * bins` counts spans `[-bins * 2^e, bins * 2^e)`; bin `bins` starts at real 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST_EXPONENT = -149


def exponent_for(reach: Tensor, bins: int) -> Tensor:
    """The smallest e with `reach < bins * 2^e`, int64."""
    _, exponent = torch.frexp(reach.double() / bins)
    exponent = torch.where(reach > 0, exponent.to(torch.int64), LOWEST_EXPONENT)  # frexp(0) says 0
    return exponent.clamp(min=LOWEST_EXPONENT)


def count(rows: Tensor, exponent: Tensor, bins: int) -> Tensor:
    """Counts `(R, 2 * bins)` of the finite elements of `rows` `(R, N)` in bins `2^exponent` wide, int64."""
    width = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)[:, None]
    index = torch.floor(torch.nan_to_num(rows.double() / width, 0.0, 0.0, 0.0)).to(torch.int64) + bins
    finite = torch.isfinite(rows).to(torch.int64)
    empty = torch.zeros(rows.shape[0], 2 * bins, dtype=torch.int64, device=rows.device)
    return empty.scatter_add_(1, index.clamp(0, 2 * bins - 1), finite)


def widened(counts: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Counts of bins `2^before` wide in bins `2^after` wide, `after >= before`."""
    bins = counts.shape[1] // 2
    shift = (after - before).clamp(max=62)[:, None]
    index = ((torch.arange(2 * bins, device=counts.device) - bins)[None] >> shift) + bins
    return torch.zeros_like(counts).scatter_add_(1, index, counts)


def centers(exponent: Tensor, bins: int) -> Tensor:
    """Centre of each bin, float64 `(R, 2 * bins)`."""
    width = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)[:, None]
    return (torch.arange(-bins, bins, device=exponent.device, dtype=torch.float64)[None] + 0.5) * width
