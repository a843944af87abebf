"""The quantizer of scores before a softmax: hidden places stay hidden, and the largest score is never clipped."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from truequant import kernels
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.steps import Step
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
        # Kernels know how to quantize, and not how to find this range.
        self.kernel_scheme, self.compiled_scheme, self.searches = self.compiled_scheme, None, False
        self.masked = True

    def quantize(self, x: Tensor) -> Tensor:
        """Fake-quantize with the scale in force; what is hidden stays minus infinity."""
        hidden = torch.isneginf(x) if self.masked else None
        y = self._by_kernel(x)
        if y is None:
            y = super().quantize(x if hidden is None else torch.where(hidden, 0.0, x))
        return y if hidden is None else torch.where(hidden, -math.inf, y)

    def _by_kernel(self, x: Tensor) -> Tensor | None:
        """Quantized in training by a compiled kernel; None where there is none for `x`."""
        if not self.training or not self.is_calibrated or torch.compiler.is_compiling() or self.kernel_scheme is None:
            return None
        if (kernel := kernels.compiled()) is None:
            return None
        y = kernel.fake_quantize(x, None, self._buffers, None, self.kernel_scheme, False, 0, 0.0, 0.0, False)
        return None if y is NotImplemented else y

    def observed(self, x: Tensor) -> Tensor:
        """The scores that are seen."""
        return x[~torch.isneginf(x)]

    def _observe(self, x: Tensor, step: Step) -> None:
        if x.numel() and self.observer.minmax_only:
            rows = x.amax(-1).float()
            lowest = torch.where(torch.isfinite(rows), rows, math.inf).amin() - DEPTH
            seen = torch.where(torch.isneginf(x), math.inf, x) if self.masked else x
            x = torch.stack([torch.maximum(seen.amin().float(), lowest), rows.amax()])
        super()._observe(x, step)
