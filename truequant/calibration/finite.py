"""What is not finite in calibration: a damaged image, a division by a deviation of zero, a layer that overflows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from truequant.errors import CalibrationError
from truequant.fake import FakeQuantize


@dataclass(slots=True)
class NotFinite:
    """Counts, batch by batch, NaN and infinity: no range takes in a tensor that holds some."""

    batch: int = -1
    found: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    """Of a batch: the first quantizer, in the order of calls, that they reached; how many, of how many values."""
    finite: set[str] = field(default_factory=set)
    """The quantizers that a finite value has reached."""
    reached: list[str] = field(default_factory=list)

    def begin(self, *_: Any) -> None:
        """The next batch begins."""
        self.batch += 1

    def look(self, quantizer: FakeQuantize, args: tuple[Any, ...]) -> None:
        """What a quantizer is called with."""
        x = quantizer.observed(args[0])
        wrong = x.numel() - int(torch.isfinite(x).sum())
        if wrong and self.batch not in self.found:
            self.found[self.batch] = quantizer.name, wrong, x.numel()
        if quantizer.name not in self.finite:
            self.reached.append(quantizer.name)
            if wrong < x.numel():
                self.finite.add(quantizer.name)

    def hooks(self, model: nn.Module) -> list[Any]:
        """Handles of what has to be removed afterwards."""
        looking = [m.register_forward_pre_hook(self.look) for m in model.modules() if isinstance(m, FakeQuantize)]
        return [*looking, model.register_forward_pre_hook(self.begin)]

    def tell(self) -> None:
        """`CalibrationError` for a quantizer that nothing else has reached; a warning where batches hold some."""
        nothing = next((name for name in self.reached if name not in self.finite), None)
        if nothing is not None:
            raise CalibrationError(
                f"calibrate: only NaN and infinity reached '{nothing}'",
                got=f"no finite value in {self.batch + 1} batches", expected="values of which a range can be made",
                fix="look at the batches, how they are normalized, and the weights before this place; the ranges are as before",
            )  # fmt: skip
        if self.found:
            (first, (name, wrong, of)), more = next(iter(self.found.items())), len(self.found) - 1
            others = f", and in {more} more of {self.batch + 1} batches" if more else ""
            warnings.warn(
                f"calibrate: NaN or infinity in batch {first}, counted from 0, first at '{name}' ({wrong:,} of {of:,} values)"
                f"{others}. Ranges leave out such tensors whole; look at these batches and how they are normalized.",
                stacklevel=4,
            )
