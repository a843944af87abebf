"""QAT statistics as plain numbers by name, for whatever logs numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from truequant.fake import QuantizerStatistics, statistics


def figures(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    prefix: str = "qat",
    inputs: Callable[[Any], Any] | None = None,
) -> dict[str, float]:
    """Numbers of a prepared model by `prefix/figure/quantizer`, and the extremes of each figure by `prefix/figure`.

    Figures: scale (the mean of a quantizer's scales), clipped (share of elements), sqnr (decibels), weight_error (relative
    root mean square). What cannot be known is left out: clipped and sqnr of activations need `batches`, as
    `tq.statistics` does. Raises `StateError` for a float model.

    >>> import torch, truequant as tq
    >>> qat = tq.calibrate(tq.prepare(nn.Sequential(nn.Linear(4, 2)), torch.ones(1, 4)), [torch.ones(1, 4)])
    >>> sorted(name for name in figures(qat) if name.startswith("qat/weight_error"))
    ['qat/weight_error', 'qat/weight_error/0.weight']
    """
    found: dict[str, float] = {}
    worst: dict[str, list[float]] = {}
    for quantizer in statistics(model, batches, inputs=inputs).quantizers:
        for figure, value in _of(quantizer).items():
            if value is not None and math.isfinite(value):
                found[f"{prefix}/{figure}/{quantizer.name}"] = value
                worst.setdefault(figure, []).append(value)
    extremes = {"sqnr": min, "clipped": max, "weight_error": max}
    return {f"{prefix}/{figure}": pick(worst[figure]) for figure, pick in extremes.items() if figure in worst} | found


def _of(quantizer: QuantizerStatistics) -> dict[str, float | None]:
    return {
        "scale": sum(quantizer.scale) / len(quantizer.scale) if quantizer.state != "uncalibrated" else None,
        "clipped": quantizer.clipped,
        "sqnr": quantizer.sqnr,
        "weight_error": quantizer.weight_error,
    }
