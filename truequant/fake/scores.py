"""The quantizer of scores before a softmax: hidden places stay hidden, and the largest score is never clipped."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from truequant.fake.quantizers import FakeQuantize
from truequant.schemes import QuantScheme

DEPTH = 10.0
"""How far below the smallest of the rows' largest scores codes reach: exp(-10) is a hundredth of a byte's step."""


class FakeQuantizeScores(FakeQuantize):
    """`FakeQuantize` of rows of scores, where minus infinity is a hidden place.

    The range ends at the largest score that is seen, and begins at the smallest, but no more than `DEPTH` below the smallest of
    the rows' largest ones. masked: whether any place may be hidden.
    """

    def __init__(self, scheme: QuantScheme) -> None:
        super().__init__(scheme)
        self.compiled_scheme, self.searches, self.masked = None, False, True  # no kernel knows this range

    def quantize(self, x: Tensor) -> Tensor:
        """Fake-quantize with the scale in force; what is hidden stays minus infinity."""
        if not self.masked:
            return super().quantize(x)
        hidden = torch.isneginf(x)
        return torch.where(hidden, -math.inf, super().quantize(torch.where(hidden, 0.0, x)))

    def observed(self, x: Tensor) -> Tensor:
        """The scores that are seen."""
        return x[~torch.isneginf(x)]

    def _observe(self, x: Tensor) -> None:
        if x.numel() and self.observer.minmax_only:
            rows = x.amax(-1).float()
            lowest = torch.where(torch.isfinite(rows), rows, math.inf).amin() - DEPTH
            seen = torch.where(torch.isneginf(x), math.inf, x) if self.masked else x
            x = torch.stack([torch.maximum(seen.amin().float(), lowest), rows.amax()])
        super()._observe(x)
