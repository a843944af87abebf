"""`QATSchedule`: when ranges start to follow the data, when they freeze, when BatchNorm freezes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from truequant.errors import ArgumentError, StateError
from truequant.fake import FakeQuantize, freeze, outermost, quantizers


@dataclass
class QATSchedule:
    """Stepped once before each training step: `schedule.step(model)`. Steps count from 0.

    observe: activation ranges follow the data from this step on; before it they stay as calibrated.
    freeze_ranges_at: all ranges, those of weights too, are held from this step on.
    freeze_batchnorm_at: BatchNorm uses and keeps its running statistics from this step on, whatever `train()` says before
        the step.
    """

    observe: int = 0
    freeze_ranges_at: int | None = None
    freeze_batchnorm_at: int | None = None
    steps: int = 0

    def __post_init__(self) -> None:
        for name in ("observe", "freeze_ranges_at", "freeze_batchnorm_at"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ArgumentError(f"QATSchedule: {name} is no step", got=repr(value), expected="0, 1, 2 … or None")

    def step(self, model: nn.Module) -> None:
        """Apply what holds at this step, and count it."""
        clock = outermost(model).binding.clock
        if clock.calibrating:
            raise StateError("a schedule steps training, and this model is being calibrated")
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
