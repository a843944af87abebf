"""A training whose optimizer holds other parameters than the prepared model's: gradients come, and nothing moves."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

LARGEST = 1024
"""Elements of a parameter that is copied to be compared; of a model without smaller ones, its smallest is."""


FORWARDS = 10
"""Training forwards before anything is said: a gradient or two are looked at without an optimizer too."""


class Untrained:
    """Parameters as `prepare` left them, until one of them is seen to have moved."""

    def __init__(self, model: nn.Module) -> None:
        trained = sorted(
            (p.numel(), name) for name, p in model.named_parameters() if p.requires_grad and p.device.type != "meta"
        )
        chosen = [name for size, name in trained if size <= LARGEST] or [name for _, name in trained[:1]]
        self.start: dict[str, Tensor] = {name: model.get_parameter(name).detach().clone() for name in chosen}

    @torch.no_grad()
    def check(self, model: nn.Module, forwards: int) -> None:
        """A warning, once, where parameters have gradients behind so many training forwards, and all are what they were."""
        if not self.start or forwards < FORWARDS:
            return
        still = False
        for name, parameter in model.named_parameters():
            before = self.start.get(name)
            if before is None or parameter.grad is None or parameter.shape != before.shape or not _moves(parameter.grad):
                continue
            if not torch.equal(parameter.to(before.device, before.dtype), before):
                self.start = {}
                return
            still = True
        if still:
            self.start = {}
            warnings.warn(
                "The prepared model has gradients, but none of its weights has changed since `prepare`, which copied the "
                "float model: does the optimizer hold the float model's parameters? Make it from the prepared model, "
                "`optimizer = torch.optim.SGD(qat.parameters(), …)`, or use `prepare(…, inplace=True)`.",
                stacklevel=4,
            )


def _moves(gradient: Tensor) -> bool:
    return bool(torch.isfinite(gradient).all()) and bool(gradient.any())
