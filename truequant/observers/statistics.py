"""`MovingAverageStatistics`: an exponential moving average of a statistic."""

from __future__ import annotations

import torch
from torch import Tensor

from truequant.errors import ArgumentError
from truequant.observers.minmax import moved
from truequant.observers.precision import Float32State


class MovingAverageStatistics(Float32State):
    """`m <- momentum * m + (1 - momentum) * x` in `train()`, the first value copied; never in `eval()`.

    channels: None for one number, else `(channels,)`. A value with no element or a non-finite one leaves its entry alone.
    Raises `ArgumentError` for a momentum outside [0, 1] or a value of another shape.

    >>> average = MovingAverageStatistics(momentum=0.5)
    >>> [float(average(torch.tensor(v))) for v in (4.0, 8.0)]
    [4.0, 6.0]
    """

    average: Tensor
    updates: Tensor
    seen: Tensor

    def __init__(self, momentum: float = 0.9, channels: int | None = None) -> None:
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise ArgumentError("MovingAverageStatistics: momentum out of range", got=momentum, expected="0 <= momentum <= 1")
        self.momentum = momentum
        shape = () if channels is None else (channels,)
        self.register_buffer("average", torch.zeros(shape))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(shape, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """Update with `x` in training; the average."""
        if self.training:
            self.update(x)
        return self.average

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take one value into the average."""
        if x.numel() == 0:
            return
        if x.shape != self.average.shape:
            raise ArgumentError(
                "MovingAverageStatistics: a value of another shape", got=tuple(x.shape), expected=tuple(self.average.shape)
            )
        value = x.detach().float()
        finite = torch.isfinite(value)
        new = moved(self.momentum, self.average, torch.where(finite, value, self.average), ~self.seen)
        self.average.copy_(torch.where(finite, new, self.average))
        self.seen.logical_or_(finite)
        self.updates.add_(finite.any())

    @torch.no_grad()
    def synchronize(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        """Give every rank the mean of all ranks' averages, over the ranks that have seen a value."""
        weight = self.seen.float()
        total = self.average * weight
        torch.distributed.all_reduce(total, group=group)
        torch.distributed.all_reduce(weight, group=group)
        torch.distributed.all_reduce(self.updates, op=torch.distributed.ReduceOp.MAX, group=group)
        self.average.copy_(torch.where(weight > 0, total / weight.clamp(min=1.0), self.average))
        self.seen.copy_(weight > 0)

    def reset(self) -> None:
        """Forget everything."""
        self.average.zero_()
        self.updates.zero_()
        self.seen.zero_()

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}"
