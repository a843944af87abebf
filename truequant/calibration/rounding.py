"""Rounding that is learned: up or down for each weight (Nagel et al. 2020, "Up or Down? Adaptive Rounding")."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1
"""How far the sigmoid is stretched beyond 0 and 1, so that both ends are reached (Louizos et al. 2018)."""


class SoftRounding:
    """Codes between floor and ceiling: `clip(floor(w / s) + h(V), qmin, qmax)` (equation 22), V learned.

    scaled: `w / s`. It starts where the codes are `w / s` itself, clipped.
    """

    def __init__(self, scaled: Tensor, qmin: int, qmax: int) -> None:
        self.qmin, self.qmax = qmin, qmax
        self.floor = torch.floor(scaled)
        rest = scaled - self.floor
        self.v = torch.log((rest - GAMMA) / (ZETA - rest)).requires_grad_(True)  # h(V) = rest

    def h(self) -> Tensor:
        """`clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)` (equation 23)."""
        return torch.clamp(torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)

    def soft(self) -> Tensor:
        """Codes that may still lie between two integers."""
        return torch.clamp(self.floor + self.h(), self.qmin, self.qmax)

    @torch.no_grad()
    def hard(self) -> Tensor:
        """Integers: up where `V >= 0`, which is where `h(V) >= 1/2`."""
        return torch.clamp(self.floor + (self.v >= 0), self.qmin, self.qmax)

    def undecided(self, beta: float) -> Tensor:
        """`sum 1 - |2 h(V) - 1|^beta` (equation 24): 0 where every weight has chosen."""
        return (1.0 - (2.0 * self.h() - 1.0).abs().pow(beta)).sum()


def sharpness(step: int, steps: int, warmup: float) -> float | None:
    """beta of a step: None while the regularizer is off, then along a cosine from 20 to 2."""
    start = int(warmup * steps)
    if step < start:
        return None
    done = (step - start) / max(1, steps - start)
    return 2.0 + 0.5 * (20.0 - 2.0) * (1.0 + math.cos(math.pi * done))
