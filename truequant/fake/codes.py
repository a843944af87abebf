"""Layers and sums in evaluation by one call of a compiled kernel, on the same integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from truequant import numerics
from truequant.fake.clock import local
from truequant.fake.planned import PlannedSite
from truequant.fake.quantizers import FakeQuantize
from truequant.kernels import Result, Windows, layer_of_codes, sum_of_codes
from truequant.numerics import Qparams
from truequant.planning import LINEAR_OPS

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


def layer(
    site: PlannedSite, x: Tensor, weights: numerics.IntegerWeights, reads: FakeQuantize, emits: FakeQuantize,
    bounds: tuple[Tensor, Tensor],
) -> Tensor | None:  # fmt: skip
    """The site's value on the grid of `emits`; None where no kernel computes it.

    bounds: the codes between which it is clamped.
    """
    if site.weight is None or max(reads.scheme.dtype.bits, site.weight.scheme.dtype.bits) > 8:
        return None
    windows = _windows(site)
    if windows is None and site.plan.op not in LINEAR_OPS:
        return None
    scale, step = reads.effective_scale(), emits.effective_scale()
    if scale.numel() != 1 or step.numel() != 1 or x.dtype != scale.dtype:
        return None
    watched = local.recorder is not None
    result = Result(
        weights.bias, numerics.multiplier(scale, weights.scale, step), float(emits.zero_point), float(bounds[0]),
        float(bounds[1]), 0.0 if watched else float(step),
    )  # fmt: skip
    y = layer_of_codes(x.detach(), float(scale), weights.weight, result, windows)
    return y if y is None or not watched else _recorded(site, y, (step, emits.zero_point))


def added(
    site: PlannedSite, left: Tensor, right: Tensor, params: tuple[Qparams, Qparams, Qparams], bounds: tuple[Tensor, Tensor]
) -> Tensor | None:
    """The sum of two values on grids by onnxruntime's rule, on the last of the three; None where no kernel computes it."""
    if left.dtype != torch.float32 or right.dtype != torch.float32:
        return None
    watched = local.recorder is not None
    low, high = float(bounds[0]), float(bounds[1])
    y = sum_of_codes(left, right, *params, low, high, reads_codes=False, writes_codes=watched)
    return y if y is None or not watched else _recorded(site, y, params[2])


def _recorded(site: PlannedSite, codes: Tensor, grid: Qparams) -> Tensor:
    """The values of codes that somebody wants to see."""
    assert local.recorder is not None
    local.recorder(site.plan.name, codes)
    return numerics.dequantize(codes, *grid)


def _windows(site: PlannedSite) -> Windows | None:
    """Of a module of torch's that is a convolution and pads with zeros."""
    owner: Any = site.owner
    if not site.plan.leaf or site.plan.op not in _CONVOLUTIONS or owner.padding_mode != "zeros":
        return None
    flat = owner._reversed_padding_repeated_twice
    padding = tuple((flat[i], flat[i + 1]) for i in range(0, len(flat), 2))[::-1]
    return Windows(owner.stride, padding, owner.dilation, owner.groups)
