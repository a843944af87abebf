"""Learned scales that a forward leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed


class _WithZeroGradients(torch.autograd.Function):
    """The identity, which gives parameters beside it gradients of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(p) for p in ctx.saved_tensors)


def with_zero_gradients(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """`x`. Where several processes train together, `parameters` get gradients of zero: DDP waits for one of each."""
    together = parameters and torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized()
    return _WithZeroGradients.apply(x, *parameters) if together else x  # type: ignore[no-untyped-call]
