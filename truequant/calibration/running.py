"""Running a model on the batches: in evaluation, with its quantizers off, and up to one of its modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from truequant.calibration.method import Inputs
from truequant.fake import quantizers_off
from truequant.planning import tensors_of


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """All modules in evaluation, without `eval()`, which would commit what is pending; modes are put back."""
    modes = {m: m.training for m in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def float_outputs(model: nn.Module, batch: Inputs) -> list[Tensor]:
    """What the float model returns for a batch."""
    args, kwargs = batch
    with evaluating(model), quantizers_off(model):
        return tensors_of(model(*args, **kwargs))


class _EnoughError(Exception):
    """The module whose inputs are wanted has been called for the last time."""


@torch.no_grad()
def inputs_of(model: nn.Module, module: nn.Module, batches: Sequence[Inputs], calls: int = 1) -> list[Tensor]:
    """The first argument of `module` in each of its `calls` calls, of each batch; the model runs no further than needed."""
    caught: list[Tensor] = []
    count = 0

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal count
        caught.append((args[0] if args else kwargs["input"]).detach().float())
        count += 1
        if count == calls:
            raise _EnoughError

    handle = module.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with evaluating(model):
            for args, kwargs in batches:
                count = 0
                with contextlib.suppress(_EnoughError):
                    model(*args, **kwargs)
    finally:
        handle.remove()
    return caught
