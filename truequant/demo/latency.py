"""How long one call takes, for several models side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Call = Callable[[Tensor], object]


def median_latencies(models: Mapping[str, Call], x: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of a call `model(x)`, by name.

    Each round calls every model once, so that what else the machine does in the meantime meets all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for _ in range(2):  # first calls allocate, choose kernels and fill caches
            for model in models.values():
                model(x)
        for _ in range(rounds):
            for name, model in models.items():
                start = time.perf_counter()
                model(x)
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
