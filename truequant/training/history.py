"""`History`: what training did to every quantizer, step by step, for reports and loggers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from truequant.fake import outermost, quantizers
from truequant.training.monitor import GradientMonitor


class History:
    """Scales and any figures of training, recorded when asked: `history.record(step, loss=…, accuracy=…)`.

    scales: by quantizer, the mean scale at each recorded step. figures: by name, `(step, value)` pairs. oscillating: by weight,
    the share of its codes that moved back the way they had come, where a monitor was given last.
    Raises `StateError` for a float model.
    """

    def __init__(self, model: nn.Module) -> None:
        outermost(model)
        self.model = model
        self.steps: list[int] = []
        self.scales: dict[str, list[float]] = {}
        self.figures: dict[str, list[tuple[int, float]]] = {}
        self.oscillating: dict[str, float] = {}

    @torch.no_grad()
    def record(self, step: int, monitor: GradientMonitor | None = None, **figures: float) -> None:
        """Remember the scales in force and some figures at this step; of a monitor, which share of each weight oscillates."""
        self.steps.append(int(step))
        found = list(quantizers(self.model))
        means = torch.stack([q.effective_scale().detach().float().mean() for _, q in found]).tolist()
        for (name, _), value in zip(found, means, strict=True):
            self.scales.setdefault(name, []).append(value)
        if monitor is not None:
            self.oscillating = {r.name: r.oscillating for r in monitor.report() if r.oscillating is not None}
        for name, value in figures.items():
            self.figures.setdefault(name, []).append((int(step), float(value)))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        figures = {name: [list(point) for point in points] for name, points in self.figures.items()}
        return {"steps": self.steps, "scales": self.scales, "figures": figures, "oscillating": self.oscillating}
