"""`GradientMonitor`: what happens to each parameter in a step of training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from truequant.fake import QATModuleWrapper, WeightQuantizer, outermost


@dataclass(frozen=True, slots=True)
class ParameterReport:
    """One parameter after a step.

    gradient_norm: Euclidean norm of its gradient; update_ratio: norm of the update over norm of the parameter before it;
    masked: share of gradient elements that are exactly zero (clipping masks them); dead: share of a weight's codes that are
    zero; oscillating: share of a weight's codes that moved back the way they had come at their last move. The last two are
    None for parameters that are no quantized weight.
    """

    name: str
    gradient_norm: float
    update_ratio: float
    masked: float
    dead: float | None = None
    oscillating: float | None = None


class GradientMonitor:
    """Attached to a prepared model; costs nothing but when asked.

        monitor = GradientMonitor(model)
        loss.backward(); monitor.before_step(); optimizer.step(); monitor.after_step()
        monitor.report()

    Raises `StateError` for a float model.
    """

    def __init__(self, model: nn.Module) -> None:
        outermost(model)
        self.model = model
        self._before: dict[str, tuple[Tensor, float, float]] = {}
        self._codes: dict[str, Tensor] = {}
        self._direction: dict[str, Tensor] = {}
        self._report: tuple[ParameterReport, ...] = ()

    @torch.no_grad()
    def before_step(self) -> None:
        """Between `backward()` and `optimizer.step()`: gradients are read, parameters remembered."""
        self._before = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                gradient = parameter.grad
                masked = float((gradient == 0).double().mean()) if gradient.numel() else 0.0
                self._before[name] = (parameter.detach().clone(), float(gradient.norm()), masked)
        if not self._codes:
            self._codes = weight_codes(self.model)

    @torch.no_grad()
    def after_step(self) -> None:
        """Behind `optimizer.step()`: updates and moves of codes."""
        codes = weight_codes(self.model)
        rows = []
        for name, parameter in self.model.named_parameters():
            if name not in self._before:
                continue
            old, norm, masked = self._before[name]
            ratio = float((parameter - old).norm() / old.norm().clamp(min=1e-30))
            dead = oscillating = None
            if name in codes:
                dead = float((codes[name] == 0).double().mean())
                oscillating = self._moved(name, codes[name])
            rows.append(ParameterReport(name, norm, ratio, masked, dead, oscillating))
        self._codes, self._report = codes, tuple(rows)

    def report(self) -> tuple[ParameterReport, ...]:
        """One row a parameter of the last step."""
        return self._report

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The report by parameter name, for loggers."""
        return {row.name: asdict(row) for row in self._report}

    def _moved(self, name: str, now: Tensor) -> float:
        """Share of codes whose move reverses their last one."""
        move = torch.sign(now - self._codes.get(name, now))
        last = self._direction.get(name, torch.zeros_like(move))
        self._direction[name] = torch.where(move != 0, move, last)
        return float(((move != 0) & (move == -last)).double().mean())


@torch.no_grad()
def weight_codes(model: nn.Module) -> dict[str, Tensor]:
    """The integer codes of all quantized weights of a prepared model, by parameter name."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, QATModuleWrapper) or not module.binding.leaf:
            continue
        site = next(iter(module.binding.leaf.values()))
        weight = site.own_weight() if "weight" in module._parameters else None
        if isinstance(site.weight, WeightQuantizer) and weight is not None:
            factor = site.normalization().factor() if site.folds else None
            key = f"{name}.weight" if name else "weight"
            found[key] = site.weight.codes(weight, factor)
    return found
