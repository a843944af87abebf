"""Linear interpolation on codes: a depthwise integer layer of fixed weights, whose channels then move into space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from truequant.planning import phase_weights


def interpolation_weights(factors: Sequence[int], channels: int) -> tuple[Tensor, float]:
    """Weight codes `(channels * prod(factors), 1, 3, …)`, float32, the phases of a channel together, and their scale."""
    phases = []
    for rows in itertools.product(*(phase_weights(f) for f in factors)):
        kernel = torch.ones(())
        for row in rows:
            kernel = kernel[..., None] * torch.tensor(row, dtype=torch.float32)
        phases.append(kernel)
    weight = torch.stack(phases).unsqueeze(1)
    return weight.repeat(channels, *[1] * (weight.dim() - 1)), 1.0 / math.prod(2 * f for f in factors)


def interpolated_sums(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Sums of the weighted neighbours of `x` `(N, C, *space)`, integers carried by float64: the borders repeat themselves."""
    n, channels = len(factors), x.shape[1]
    weight, _ = interpolation_weights(factors, channels)
    padded = F.pad(x.double(), (1, 1) * n, mode="replicate")
    conv = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    sums = torch.round(conv(padded, weight.to(x.device).double(), groups=channels))
    space = x.shape[2:]
    parts = sums.reshape(x.shape[0], channels, *factors, *space)
    order = [0, 1, *(axis for i in range(n) for axis in (2 + n + i, 2 + i))]
    return parts.permute(order).reshape(x.shape[0], channels, *(m * f for m, f in zip(space, factors, strict=True)))
