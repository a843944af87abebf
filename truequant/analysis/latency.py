"""How long calls take, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def median_seconds(calls: Mapping[str, Callable[[], object]], rounds: int, *, gradients: bool = False) -> dict[str, float]:
    """Median seconds of each call, by name.

    Each round makes every call once, so that what else the machine does in the meantime meets all of them alike. Two rounds
    before are not counted: first calls allocate, choose kernels and fill caches. gradients: let torch record them.

    >>> sorted(median_seconds({"a": lambda: None, "b": lambda: None}, rounds=3))
    ['a', 'b']
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.set_grad_enabled(gradients):
        for counted in (*[False] * 2, *[True] * rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if counted:
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
