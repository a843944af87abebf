"""Ranges of weights, read from the weights themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from truequant import numerics
from truequant.observers.minmax import finite_range, grouped
from truequant.schemes import MSE, Histogram, Percentile, QuantScheme

FRACTIONS = 80
_ROWS = 4096
Search = Callable[[Tensor, Tensor, Tensor, float, float], Tensor | None]
"""What finds the first grid of the least squared error for each row: `kernels.least_error`. None where it cannot."""


@torch.no_grad()
def weight_range(weight: Tensor, scheme: QuantScheme, search: Search | None = None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of the range of each scale, float32: `()`, `(C,)` or the shape of groups.

    Least squared error where the observer is `MSE` or `Histogram`, a percentile where it is `Percentile`, else the whole
    range. A binary scale is the mean of |w|, which is its least squared error (Rastegari et al. 2016, equation 6).
    """
    if scheme.dtype.bits == 1 and scheme.dtype.signed:
        mean = grouped(weight, scheme.granularity).float().abs().nanmean(-1)
        return -mean, mean
    low, high = finite_range(weight, scheme.granularity)
    low, high = torch.nan_to_num(low, 0.0, 0.0, 0.0), torch.nan_to_num(high, 0.0, 0.0, 0.0)
    if isinstance(scheme.observer, (MSE, Histogram)):
        rows = grouped(weight, scheme.granularity).float()
        found = _searched(rows, low, high, scheme, search) if search is not None else None
        return _least_error(rows, low, high, scheme) if found is None else (low * found, high * found)
    if isinstance(scheme.observer, Percentile):
        rows = grouped(weight, scheme.granularity).float().abs()
        reach = torch.nanquantile(rows, scheme.observer.percent / 100.0, dim=-1)
        return torch.maximum(low, -reach), torch.minimum(high, reach)
    return low, high


def _least_error(rows: Tensor, low: Tensor, high: Tensor, scheme: QuantScheme) -> tuple[Tensor, Tensor]:
    """The fraction of the whole range with the least squared error, for each scale."""
    best = torch.full_like(low, torch.inf, dtype=torch.float64)
    chosen = torch.ones_like(low)
    for step in range(FRACTIONS, 0, -1):
        fraction = step / FRACTIONS
        scale, zero_point = (v[..., None] for v in numerics.scale_and_zero_point(low * fraction, high * fraction, scheme))
        codes = numerics.quantize(rows, scale, zero_point, scheme.qmin, scheme.qmax)
        error = (numerics.dequantize(codes, scale, zero_point) - rows).double().square().nansum(-1)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, fraction, chosen)
    return low * chosen, high * chosen


def _searched(rows: Tensor, low: Tensor, high: Tensor, scheme: QuantScheme, search: Search) -> Tensor | None:
    """The fractions of `_least_error`, some rows at once: the grids of a group of 32 take more memory than its values."""
    fractions = (torch.arange(FRACTIONS, 0, -1, dtype=torch.float64, device=rows.device) / FRACTIONS).float()
    parts = (v.reshape(low.numel(), -1).split(_ROWS) for v in (rows, low, high))
    found = []
    for part, below, above in zip(*parts, strict=True):
        grids = numerics.scale_and_zero_point(below * fractions, above * fractions, scheme)
        chosen = search(part, *grids, scheme.qmin, scheme.qmax)
        if chosen is None:
            return None
        found.append(fractions[chosen])
    return torch.cat(found).view(low.shape)
