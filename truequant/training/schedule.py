"""`QATSchedule`: how wide codes are, when ranges start to follow the data, when they freeze, when BatchNorm freezes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from truequant.errors import ArgumentError, StateError
from truequant.fake import FakeQuantize, freeze, outermost, quantizers, set_bits


@dataclass
class QATSchedule:
    """Stepped once before each training step: `schedule.step(model)`. Steps count from 0.

    observe: activation ranges follow the data from this step on; before it they stay as calibrated.
    freeze_ranges_at: all ranges, those of weights too, are held from this step on.
    freeze_batchnorm_at: BatchNorm uses and keeps its running statistics from this step on, whatever `train()` says before
        the step.
    bits: widths by the step that they begin at, such as `{0: 4, 1000: 3, 2000: 2}`: quantizers that are planned narrower have
        so many bits until then (progressive training: few bits start from weights that did well with more). At a change, ranges
        are found again. A checkpoint keeps the width.

    >>> QATSchedule(bits={0: 4, 1000: 3, 2000: 2}).bits_at(1500)
    3
    """

    observe: int = 0
    freeze_ranges_at: int | None = None
    freeze_batchnorm_at: int | None = None
    steps: int = 0
    bits: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("observe", "freeze_ranges_at", "freeze_batchnorm_at"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ArgumentError(f"QATSchedule: {name} is no step", got=repr(value), expected="0, 1, 2 … or None")
        widths = sorted((self.bits or {}).items())
        if not all(isinstance(k, int) and k >= 0 and isinstance(b, int) and 1 <= b <= 8 for k, b in widths):
            raise ArgumentError("QATSchedule: bits is no table of widths", got=repr(self.bits), expected="{step: 1 … 8 bits}")
        if any(later >= earlier for (_, earlier), (_, later) in pairwise(widths)):
            raise ArgumentError("QATSchedule: widths grow", got=repr(self.bits), expected="fewer bits at each later step")

    def bits_at(self, step: int) -> int | None:
        """The width that holds at a step; None before the first."""
        return next((b for begin, b in sorted((self.bits or {}).items(), reverse=True) if begin <= step), None)

    def step(self, model: nn.Module) -> None:
        """Apply what holds at this step, and count it."""
        clock = outermost(model).binding.clock
        if clock.calibrating:
            raise StateError("a schedule steps training, and this model is being calibrated")
        if (bits := self.bits_at(self.steps)) is not None:
            set_bits(model, bits)
        for _, quantizer in quantizers(model):
            if isinstance(quantizer, FakeQuantize):
                quantizer.observing = self.steps >= self.observe
        if self.freeze_ranges_at is not None and self.steps >= self.freeze_ranges_at and clock.state != "frozen":
            freeze(model)
        if self.freeze_batchnorm_at is not None and self.steps >= self.freeze_batchnorm_at:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of steps taken."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved number of steps."""
        self.steps = int(state["steps"])
