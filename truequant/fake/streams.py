"""What a quantizer of a residual stream knows until its width is chosen: the largest absolute value of each channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Stream:
    """axis: of the channels, counted from the end. chosen: whether the width is. settled: whether the state was asked for it
    since, which another rank may have written. greatest: of each channel what was seen, while nothing is chosen.
    """

    axis: int
    chosen: bool
    settled: bool = False
    greatest: Tensor | None = None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take in what passes; values that are not finite count nothing."""
        if not x.numel():
            return
        channels = torch.nan_to_num(x.detach().float(), 0.0, 0.0, 0.0).abs().movedim(self.axis, -1)
        seen = channels.reshape(-1, channels.shape[-1]).amax(0)
        self.greatest = seen if self.greatest is None else torch.maximum(self.greatest, seen)
