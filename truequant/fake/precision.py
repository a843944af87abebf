"""Evaluation in float32, whatever dtype the parameters of a model have: codes are counted there, and float islands computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from truequant.fake.shadowing import shadowed
from truequant.planning import mapped


def _other(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def in_other_precision(module: nn.Module) -> bool:
    """Whether a floating parameter or buffer of a model has another dtype than float32."""
    return any(_other(t) for t in module.parameters()) or any(_other(t) for t in module.buffers())


def single(value: Any) -> Any:
    """What a model takes, its floating tensors in float32."""
    return mapped(value, lambda t: t.float() if _other(t) else t)


@contextlib.contextmanager
def parameters_in_single(module: nn.Module) -> Iterator[None]:
    """Parameters and buffers in float32 for one forward; gradients go through the cast. Shared ones stay shared."""
    cast: dict[int, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for part in module.modules():
            own = {n: t for n, t in (*part._parameters.items(), *part._buffers.items()) if t is not None and _other(t)}
            cast |= {id(t): t.float() for t in own.values() if id(t) not in cast}
            if own:
                stack.enter_context(shadowed(part, **{name: cast[id(t)] for name, t in own.items()}))
        yield
