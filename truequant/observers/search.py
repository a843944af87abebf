"""Ranges from histograms: percentile, least squared error, least divergence.

Counts are int64 `(R, 2 * bins)`, centres float64 of the same shape, `low` and `high` the smallest and largest value seen,
`(R,)` float32. Each function returns `(low, high)` of the chosen range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from truequant import numerics
from truequant.schemes import QuantScheme

Range = tuple[Tensor, Tensor]


def percentile(counts: Tensor, middle: Tensor, low: Tensor, high: Tensor, percent: float) -> Range:
    """The range that holds `percent` of the values; the tails are cut evenly, or one tail where all lie on one side of 0."""
    total = counts.sum(1, keepdim=True).double()
    outside = total * (1.0 - percent / 100.0)
    two_sided = ((low < 0) & (high > 0))[:, None]
    tail = torch.where(two_sided, outside / 2, outside)
    half = (middle[:, 1:2] - middle[:, :1]) / 2
    cumulated = counts.cumsum(1).double()
    first = (cumulated <= tail).sum(1, keepdim=True).clamp(max=counts.shape[1] - 1)
    last = (cumulated < total - tail).sum(1, keepdim=True).clamp(max=counts.shape[1] - 1)
    below, above = middle.gather(1, first) - half, middle.gather(1, last) + half
    bottom = torch.where(low[:, None] < 0, below, 0.0)[:, 0].float()
    top = torch.where(high[:, None] > 0, above, 0.0)[:, 0].float()
    return torch.maximum(bottom, low.clamp(max=0.0)), torch.minimum(top, high.clamp(min=0.0))


def squared_error(counts: Tensor, middle: Tensor, low: Tensor, high: Tensor, scheme: QuantScheme) -> Tensor:
    """Sum over bins of count times the squared quantization error of the centre, for candidate ranges `(R, K)`; `(R, K)`."""
    scale, zero_point = numerics.scale_and_zero_point(low, high, scheme)
    points = middle[:, None].float()
    if scheme.dtype.bits == 1 and scheme.dtype.signed:
        values = numerics.binarize(points) * scale[..., None]
    else:
        codes = numerics.quantize(points, scale[..., None], zero_point[..., None], scheme.qmin, scheme.qmax)
        values = numerics.dequantize(codes, scale[..., None], zero_point[..., None])
    return ((values - points).double().square() * counts[:, None].double()).sum(-1)


def used(counts: Tensor, middle: Tensor) -> Range:
    """The bins from the first to the last that holds anything, on a CPU; elsewhere all, since the host would wait."""
    if counts.device.type != "cpu":
        return counts, middle
    filled = counts.sum(0).nonzero().flatten()
    if not filled.numel():
        return counts, middle
    return counts[:, filled[0] : filled[-1] + 1], middle[:, filled[0] : filled[-1] + 1]


def least_error(counts: Tensor, middle: Tensor, low: Tensor, high: Tensor, scheme: QuantScheme, candidates: int) -> Range:
    """Shrink both ends together, then each alone: three scans of `candidates` fractions of the whole range."""
    bottom, top = low.clamp(max=0.0), high.clamp(min=0.0)
    counts, middle = used(counts, middle)
    fractions = (torch.arange(1, candidates + 1, device=counts.device) / candidates)[None]

    def best(lows: Tensor, highs: Tensor) -> Range:
        chosen = squared_error(counts, middle, lows, highs, scheme).argmin(1, keepdim=True)
        return lows.gather(1, chosen)[:, 0], highs.gather(1, chosen)[:, 0]

    a, b = best(bottom[:, None] * fractions, top[:, None] * fractions)
    if scheme.is_symmetric:
        return a, b
    a, b = best(a[:, None].expand(-1, candidates), top[:, None] * fractions)
    return best(bottom[:, None] * fractions, b[:, None].expand(-1, candidates))


def least_divergence(counts: Tensor, middle: Tensor, low: Tensor, high: Tensor, scheme: QuantScheme) -> Range:
    """The threshold on |x| whose quantized distribution has the least Kullback-Leibler divergence from the original."""
    bins = counts.shape[1] // 2
    size = counts[:, bins:] + counts[:, :bins].flip(1)
    levels = (scheme.qmax - scheme.qmin + 1) // 2 if bool((low < 0).any()) else scheme.qmax - scheme.qmin + 1
    edges = middle[:, bins:] + (middle[:, bins + 1] - middle[:, bins])[:, None] / 2
    reach = []
    for row, edge in zip(size, edges, strict=True):
        used = int(row.nonzero().max()) + 1 if bool(row.any()) else 1
        start = min(max(levels, 8), used)
        scores = [
            (_divergence(row[:used].double(), stop, levels), stop) for stop in range(start, used + 1, max(1, used // 256))
        ]
        scores.append((_divergence(row[:used].double(), used, levels), used))
        reach.append(edge[min(scores)[1] - 1].float())
    limit = torch.stack(reach)
    return torch.maximum(low.clamp(max=0.0), -limit), torch.minimum(high.clamp(min=0.0), limit)


def _divergence(row: Tensor, stop: int, levels: int) -> float:
    """KL(P || Q) of the first `stop` bins with the outliers in the last, Q being P on `levels` levels."""
    kept = row[:stop]
    p = kept.clone()
    p[-1] += row[stop:].sum()
    level = torch.div(torch.arange(stop) * levels, stop, rounding_mode="floor").to(row.device)
    mass = torch.zeros(levels, dtype=torch.float64, device=row.device).scatter_add_(0, level, kept)
    filled = torch.zeros(levels, dtype=torch.float64, device=row.device).scatter_add_(0, level, (kept > 0).double())
    q = torch.where(kept > 0, (mass / filled.clamp(min=1))[level], 0.0)
    p, q = p / p.sum(), q / q.sum().clamp(min=1e-300)
    there = p > 0
    return float((p[there] * torch.log(p[there] / q[there].clamp(min=1e-12))).sum())
