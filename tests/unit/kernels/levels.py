"""What every level is compared with: the reference, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from truequant import kernels

LEVELS = [name for name in kernels.levels() if name != "reference"]
LENGTHS = (0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1000, 2047, 2049, 40_001)


def awkward(n: int, scale: float = 0.1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ties, both zeros, denormals, saturation, infinities and NaN among ordinary values."""
    x = torch.randn(n) * 9
    special = [k * scale for k in (0.5, 1.5, -0.5, -2.5, 254.5, 255.5, -128.5)]
    special += [0.0, -0.0, 1e-42, -1e-42, 1e30, -1e30, math.inf, -math.inf, math.nan, 3.4e38]
    for k, value in enumerate(special):
        if n > 3 * k:
            x[(3 * k * 37) % n] = value
    return x.to(dtype)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, every NaN being one value."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    whole = {4: torch.int32, 2: torch.int16, 8: torch.int64}[a.element_size()]
    nan = torch.isnan(a) & torch.isnan(b)
    return bool((nan | (a.contiguous().view(whole) == b.contiguous().view(whole))).all())


def on_each(level: str, run: Callable[[], Any]) -> tuple[Any, Any]:
    """What `run` gives by the reference and by a level, from the same random state."""
    results = []
    for name in ("reference", level):
        torch.manual_seed(0)
        with kernels.using(name):
            results.append(run())
    return results[0], results[1]
