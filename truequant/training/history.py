"""`History`: what training did to every quantizer, step by step, for reports and loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

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

    def load_dict(self, found: Mapping[str, Any]) -> None:
        """Go on from what `to_dict` gave."""
        self.steps = [int(step) for step in found["steps"]]
        self.scales = {name: [float(v) for v in values] for name, values in found["scales"].items()}
        self.figures = {name: [(int(s), float(v)) for s, v in points] for name, points in found["figures"].items()}
        self.oscillating = {name: float(share) for name, share in found["oscillating"].items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        figures = {name: [list(point) for point in points] for name, points in self.figures.items()}
        return {"steps": self.steps, "scales": self.scales, "figures": figures, "oscillating": self.oscillating}


class Watch:
    """A `History` and a `GradientMonitor` on every `every`-th step of an optimizer, the first step included.

    watch = Watch(model, optimizer, every=50)
    for step, (x, y) in enumerate(loader, 1):
        ...                                     # your step, unchanged
        watch.stepped(step, loss=loss.item())
    truequant.report("report.html", model, batches, history=watch.history)
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, every: int) -> None:
        self.history, self.every = History(model), every
        self._monitor = GradientMonitor(model)
        self._steps = 0  # done
        optimizer.register_step_pre_hook(lambda *_: self._around(self._monitor.before_step))
        optimizer.register_step_post_hook(lambda *_: self._around(self._monitor.after_step))

    def stepped(self, step: int, **figures: float) -> None:
        """Behind a step, with what to remember of it where it is one of those that are."""
        if self._due(step):
            self.history.record(step, self._monitor, **figures)
        self._steps = step

    def resume(self, found: Mapping[str, Any], step: int) -> None:
        """Go on behind a step, with what the history's `to_dict` gave there."""
        self.history.load_dict(found)
        self._steps = step

    def _due(self, step: int) -> bool:
        return (step - 1) % self.every == 0

    def _around(self, look: Callable[[], None]) -> None:
        if self._due(self._steps + 1):
            look()
