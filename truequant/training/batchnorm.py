"""Statistics of BatchNorm, estimated again for the weights as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from truequant.errors import ArgumentError
from truequant.fake import outermost
from truequant.planning import arguments_of, items_of, takes_of


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, batches: Iterable[Any], *, inputs: Callable[[Any], Any] | None = None
) -> nn.Module:  # fmt: skip
    """Replace the running statistics of every BatchNorm by those of `batches` (Nagel et al. 2022, section 2.3.1; 50 do).

        running_mean = mean over batches of their mean,  running_var = mean over batches of their unbiased variance

    In training, weights that oscillate between two codes leave running averages that fit neither. Weights and activations
    are fake-quantized, dropout is off, ranges and all else stay as they are. Call it behind the last step of training,
    before `convert`.

    batches, inputs: as in `calibrate`. Raises `ArgumentError` for no batches, `StateError` for a float model.
    """
    root = outermost(model)
    takes = takes_of(root.binding.plan)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    before = {
        norm: (norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()) for norm in norms
    }
    modes = {m: m.training for m in model.modules()}
    sums = {norm: _Sums() for norm in norms}
    handles = [norm.register_forward_pre_hook(lambda m, args: sums[m].add(args[0])) for norm in norms]
    seen = 0
    try:
        for module in modes:
            module.training = False
        for norm in norms:
            norm.training, norm.momentum = True, 0.0  # this batch's statistics, while the running ones stay
        for item in items_of(batches, "reestimate_batchnorm"):
            args, kwargs = arguments_of(item, takes, inputs)
            model(*args, **kwargs)
            seen += 1
    finally:
        for handle in handles:
            handle.remove()
        for norm, (momentum, tracked) in before.items():
            norm.momentum = momentum
            if tracked is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(tracked)
        for module, mode in modes.items():
            module.training = mode
    if seen == 0:
        raise ArgumentError(
            "reestimate_batchnorm: there were no batches",
            expected="at least one item",
            fix="pass a list or a DataLoader that is not used up",
        )
    for norm, found in sums.items():
        if found.calls:
            norm.running_mean.copy_(found.mean / found.calls)  # type: ignore[union-attr]
            norm.running_var.copy_(found.variance / found.calls)  # type: ignore[union-attr]
    return model


class _Sums:
    """Sums of means and of unbiased variances, float64."""

    def __init__(self) -> None:
        self.calls = 0
        self.mean: Any = 0.0
        self.variance: Any = 0.0

    def add(self, x: Tensor) -> None:
        # Called inside a forward whose calls of functions are counted: these are none of the model's.
        with torch._C.DisableTorchFunction():
            self._add(x)

    def _add(self, x: Tensor) -> None:
        rows = x.double().transpose(0, 1).flatten(1) if x.dim() > 2 else x.double().t()
        self.calls += 1
        self.mean = self.mean + rows.mean(1)
        self.variance = self.variance + rows.var(1)
