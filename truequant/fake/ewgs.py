"""The delta of EWGS as state of a quantizer: a buffer, so that what was found from the Hessian survives a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from truequant.fake.grid import Grid
from truequant.schemes import EWGS, QuantScheme


def has_delta(quantizer: nn.Module) -> bool:
    """Whether gradients through this quantizer are scaled."""
    return isinstance(quantizer, Grid) and isinstance(quantizer.scheme.rounding, EWGS)


def keep_delta(quantizer: Grid) -> None:
    """Give a quantizer the buffer `delta`, which a state that is loaded brings into force."""
    rounding = quantizer.planned.rounding
    if isinstance(rounding, EWGS) and "delta" not in quantizer._buffers:
        quantizer.register_buffer("delta", torch.tensor(rounding.delta, dtype=torch.float64))
        quantizer.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]


def set_delta(quantizer: Grid, delta: float) -> None:
    """Scale gradients by `delta` from now on."""
    rounding = EWGS(delta)

    def changed(scheme: QuantScheme) -> QuantScheme:
        return scheme.with_(rounding=rounding) if isinstance(scheme.rounding, EWGS) else scheme

    quantizer.scheme, quantizer.planned = changed(quantizer.scheme), changed(quantizer.planned)
    buffer: Tensor | None = quantizer._buffers.get("delta")
    if buffer is not None:
        buffer.fill_(delta)


def _loaded(quantizer: Any, _: Any) -> None:
    set_delta(quantizer, float(quantizer.delta))
