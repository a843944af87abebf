"""QAT statistics in TensorBoard. Needs the package tensorboard: `pip install 'truequant[tensorboard]'`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from truequant.training import figures
from truequant.training.monitor import weight_codes


@torch.no_grad()
def write_figures(
    writer: SummaryWriter, model: nn.Module, step: int, batches: Iterable[Any] | None = None, *, histograms: bool = False
) -> None:
    """Write the figures of a prepared model as scalars, and the codes of its weights as histograms if asked."""
    for name, value in figures(model, batches).items():
        writer.add_scalar(name, value, step)
    if histograms:
        for name, codes in weight_codes(model).items():
            writer.add_histogram(f"qat/codes/{name}", codes, step)
