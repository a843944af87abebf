"""`codes`: the integers that an evaluated model computes, edge by edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from truequant.errors import StateError
from truequant.fake.clock import local
from truequant.fake.wrapper import QATModuleWrapper
from truequant.planning import as_arguments


def outermost(model: nn.Module) -> QATModuleWrapper:
    """The model itself, which must be the outermost prepared module."""
    if isinstance(model, QATModuleWrapper) and model.binding.outermost:
        return model
    inner = next((n for n, m in model.named_modules() if isinstance(m, QATModuleWrapper) and m.binding.outermost), None)
    if inner is not None:
        raise StateError(
            f"{type(model).__name__} holds the prepared model and is none itself", got=type(model).__name__,
            expected=f"the model in its '{inner}'", fix=f"pass model.{inner}",
        )  # fmt: skip
    if isinstance(model, QATModuleWrapper):
        raise StateError(
            f"{type(model).__name__} is a part of a prepared model",
            fix="pass the model that tq.prepare returned. Where adapters were merged: tq.convert before that, or "
            "tq.restore_float(model) and prepare anew",
        )
    raise StateError(
        f"{type(model).__name__} is not prepared", fix="tq.prepare(model, example_inputs) returns the model to pass here"
    )


def codes(model: nn.Module, example: Any) -> dict[str, Tensor]:
    """The codes of every edge, int32, by the name of the site that computed it, of one forward in evaluation.

    example: a tensor, a tuple of positional inputs, or a dict of keyword inputs. The model's mode is put back.
    """
    args, kwargs = as_arguments(example)
    return evaluated(model, args, kwargs)[0]


def evaluated(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """The codes, as `codes` has them, and what the same forward returns."""
    model = outermost(model)
    found: dict[str, Tensor] = {}

    def record(name: str, values: Tensor) -> None:
        found[name] = values.to(torch.int32)

    modes = {m: m.training for m in model.modules()}
    before = local.recorder
    try:
        for module in modes:
            module.training = False  # not .eval(): looking at codes commits nothing
        local.recorder = record
        with torch.no_grad():
            outputs = model(*args, **kwargs)
    finally:
        local.recorder = before
        for module, mode in modes.items():
            module.training = mode
    return found, outputs
