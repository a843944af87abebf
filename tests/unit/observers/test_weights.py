"""The range of a weight, against brute force."""

from __future__ import annotations

import numpy as np
import torch

from truequant.observers import weight_range
from truequant.schemes import MSE, PerChannel, QuantScheme, int4


def test_the_least_error_is_the_least_of_every_fraction() -> None:
    """All 80 fractions of the whole range, in float64, channel by channel."""
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) ** 3
    scheme = QuantScheme(int4, PerChannel(0), observer=MSE())
    low, high = weight_range(weight, scheme)
    for row, below, above in zip(weight.double().numpy(), low.tolist(), high.tolist(), strict=True):
        reach = np.abs(row).max()
        errors = {}
        for step in range(1, 81):
            scale = np.float32(np.float32(reach * step / 80) / np.float32(scheme.qmax))
            codes = np.clip(np.rint(row / scale), scheme.qmin, scheme.qmax)
            errors[step] = float(((codes * np.float64(scale) - row) ** 2).sum())
        best = min(errors, key=lambda step: errors[step])
        assert round(80 * max(-below, above) / reach) == best
