"""Losses by name, and top-1."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truequant.cli.naming import named
from truequant.errors import ArgumentError
from truequant.planning import as_arguments
from truequant.training.loop import Loss

_LOSSES: dict[str, Callable[[Any, Any], Tensor]] = {"cross-entropy": F.cross_entropy, "mse": F.mse_loss}


def loss_named(name: str, device: str, more: Callable[..., Tensor] | None = None) -> Loss:
    """The loss of a name, on `(inputs, targets)` items: "cross-entropy", "mse", or MODULE:NAME of `f(outputs, targets)`.

    more: what is added to it, from the outputs and the inputs.
    """
    function = _LOSSES.get(name) or named(name, "training.loss")

    def loss(model: nn.Module, item: Any) -> Tensor:
        inputs, targets = _parts(item, device)
        outputs = _call(model, inputs)
        found = function(outputs, targets)
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise ArgumentError(f"training.loss: '{name}' returned no number", got=repr(type(found)), expected="a tensor ()")
        return found if more is None else found + more(outputs, inputs)

    return loss


@torch.no_grad()
def test_loss(model: nn.Module, batches: Iterable[Any], loss: Loss) -> float:
    """The mean of the loss over the batches, in evaluation."""
    model.eval()
    losses = [float(loss(model, item)) for item in batches]
    if not losses:
        raise ArgumentError("data.factory: there were no test batches", expected="at least one")
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Any], device: str) -> float:
    """The share of items whose largest output is at the target's index."""
    right = count = 0
    for item in batches:
        inputs, targets = _parts(item, device)
        answers = _call(model, inputs).argmax(1)
        right, count = right + int((answers == targets).sum()), count + targets.numel()
    if not count:
        raise ArgumentError("data.factory: there were no test batches", expected="at least one")
    return right / count


def _parts(item: Any, device: str) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        kind = f"{type(item).__name__} of {len(item)}" if isinstance(item, (tuple, list, dict)) else type(item).__name__
        raise ArgumentError("data.factory: a batch is no pair", got=kind, expected="(inputs, targets)")
    return _moved(item[0], device), _moved(item[1], device)


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return tuple(_moved(part, device) for part in value) if isinstance(value, (tuple, list)) else value


def _call(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = as_arguments(inputs)
    return model(*args, **kwargs)
