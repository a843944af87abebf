"""How far learned scales may move: between steps each is put back within `REACH` of the range that was seen.

A learned scale is `s_0 * f(shift)`, s_0 from what was observed. Whatever gradients, learning rate and optimizer do to `shift`,
the scale in force stays in `[s_0 / REACH, s_0 * REACH]`, so that one step changes it by a factor of REACH^2 at most, and it
never meets a place where its own gradient has vanished: a step in the right direction always leads back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from truequant.fake.clock import in_backward
from truequant.fake.grid import Grid
from truequant.observers import is_sharded, of_this_rank

REACH = 8.0
"""Ordinary training moves a scale by less than 2 either way. At 16 nothing trains its way back any more, at 8 all do."""
_LINEAR = -math.log(REACH), REACH - 1.0
"""Of shifts with f(t) = 1 + t above 0 and exp(t) below."""
_BINARY = -math.log2(REACH), math.log2(REACH)
"""Of thresholds, which move in powers of two."""


class Limits:
    """The learned scales of one model."""

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.grids = tuple(grids)
        self._versions = -1
        self._spread: dict[Grid, torch.Tensor] = {}
        """Shifts that FSDP2 shards: while a unit of it runs, its modules hold gathered copies instead."""
        self._early = False

    def step(self, root: nn.Module, begins: bool) -> None:
        """A forward in training: `begins` a step, or belongs to one. What an optimizer changed meanwhile is put back too."""
        if not self.grids:
            return
        if not self._early and not torch.compiler.is_compiling() and type(root).__name__.startswith("FSDP"):
            self._early = True
            root.register_forward_pre_hook(self._before, prepend=True)
        if torch.compiler.is_compiling() or begins or self._count() != self._versions:
            self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        """Put all shifts back into their limits. NaN stays, so that a broken loss shows."""
        for binary, (low, high) in ((False, _LINEAR), (True, _BINARY)):
            shifts: list[torch.Tensor] = []
            for grid in self.grids:
                if grid.shift is not None and grid.scheme.power_of_two == binary:
                    shifts += self._held(grid, grid.shift)
            if shifts:
                torch._foreach_clamp_min_(shifts, low)
                torch._foreach_clamp_max_(shifts, high)
        if not torch.compiler.is_compiling():
            self._versions = self._count()

    def _before(self, root: nn.Module, _: object) -> None:
        """Ahead of the hook in which FSDP2 gathers what the model itself, as a unit, holds of the shifts."""
        if root.training and not in_backward():
            self.hold()

    def _held(self, grid: Grid, shift: torch.Tensor) -> list[torch.Tensor]:
        """Where a shift is held on this rank."""
        if is_sharded(shift):
            self._spread[grid] = shift
        elif (spread := self._spread.get(grid)) is not None:
            return [shift, of_this_rank(spread)]
        return [of_this_rank(shift)]

    def _count(self) -> int:
        """How often the shifts were written."""
        return sum(g.shift._version for g in self.grids if g.shift is not None)
