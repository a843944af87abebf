"""QAT statistics in Weights & Biases. Needs the package wandb: `pip install 'truequant[wandb]'`; offline runs work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import wandb
from torch import nn

from truequant.fake import statistics
from truequant.training import figures


def log_figures(
    run: wandb.Run, model: nn.Module, step: int | None = None, batches: Iterable[Any] | None = None, **more: float
) -> None:
    """Log the figures of a prepared model, and `more` beside them, at a step of the run."""
    run.log({**figures(model, batches), **more}, step=step)


def log_statistics_table(run: wandb.Run, model: nn.Module, batches: Iterable[Any] | None = None) -> None:
    """Log a table with a row a quantizer: what `print(tq.statistics(model))` shows."""
    columns: list[str | int] = ["quantizer", "kind", "scheme", "state", "scale", "clipped", "sqnr", "weight_error"]
    rows = [
        [q.name, q.kind, q.scheme, q.state, sum(q.scale) / len(q.scale), q.clipped, q.sqnr, q.weight_error]
        for q in statistics(model, batches).quantizers
    ]
    run.log({"qat/quantizers": wandb.Table(columns=columns, data=rows)})
