"""Oscillating weights: their frequency, and codes that freeze (Nagel et al. 2022, algorithm 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from truequant.observers import Float32State
from truequant.schemes import Freezing


class Oscillation(Float32State):
    """State of one weight's codes, all of it buffers: it travels with checkpoints, devices and ranks.

    codes, direction: the codes of the last step and the sign of each one's last move; frequency, average: exponential moving
    averages of oscillations (section 4.1) and of codes, not rounded; frozen: which codes stay at `codes` for good.
    """

    codes: Tensor
    direction: Tensor
    frequency: Tensor
    average: Tensor
    frozen: Tensor
    steps: Tensor

    def __init__(self, shape: tuple[int, ...], rule: Freezing) -> None:
        super().__init__()
        self.rule = rule
        for name in ("codes", "direction", "frequency", "average"):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("frozen", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, codes: Tensor) -> None:
        """One step of training, whose weights have these codes."""
        m, first = self.rule.momentum, self.steps == 0
        move = torch.where(first, 0.0, torch.sign(codes - self.codes))
        oscillates = (move != 0) & (move == -self.direction)  # section 4.1: against its last move
        frequency = m * oscillates.float() + (1 - m) * self.frequency
        average = torch.where(first, codes, m * codes + (1 - m) * self.average)
        freezes = (frequency > self.threshold()) & ~self.frozen
        self.codes.copy_(torch.where(self.frozen, self.codes, torch.where(freezes, torch.round(average), codes)))
        self.direction.copy_(torch.where(move != 0, move, self.direction))
        self.frequency.copy_(frequency)
        self.average.copy_(average)
        self.frozen.logical_or_(freezes)
        self.steps.add_(1)

    def threshold(self) -> Tensor:
        """Of this step: from `start` to `end` along half a cosine."""
        rule = self.rule
        if rule.steps is None:
            return torch.full((), rule.start, device=self.steps.device)
        progress = torch.clamp(self.steps.float() / rule.steps, max=1.0)
        return rule.end + (rule.start - rule.end) * 0.5 * (1 + torch.cos(math.pi * progress))

    @torch.no_grad()
    def reset(self) -> None:
        """Nothing seen, nothing frozen."""
        for buffer in self.buffers():
            buffer.zero_()
