"""A weight layer as integers: BatchNorm folded into scale and bias, exactly.

With per-channel factors f = gamma / sqrt(var + eps) (1 without BatchNorm):

    free scales, one a channel:  wq = sign(f) * codes(w),  sw' = sw * |f|
    tied scales (per tensor, powers of two):  wq = rint(w * f / sw'),  sw' the scale of the folded weight
    bq = rint(b' / float32(sx * sw')),  b' = beta + (b - mean) * f

Nothing divides by gamma. sw' is floored so that |bq| <= 2^30, sx * sw' >= 2^-100 and sw' >= 2^-120; where the floor acts,
codes are computed at that scale (0 for a dead channel). Factors and b' are float64, all scales float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from truequant.numerics.affine import along_axis, binarize
from truequant.numerics.qparams import bounded
from truequant.schemes import PerChannel, QuantScheme

MAX_BIAS = 2.0**30
MIN_PRODUCT = 2.0**-100
MIN_FOLDED_SCALE = 2.0**-120


@dataclass(frozen=True, slots=True)
class Normalization:
    """BatchNorm in evaluation: `gamma * (y - mean) / sqrt(var + eps) + beta`, all `(C,)`."""

    mean: Tensor
    var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    eps: float

    def factor(self) -> Tensor:
        """`gamma / sqrt(var + eps)`, float64, `(C,)`."""
        inverse = 1.0 / torch.sqrt(self.var.double() + self.eps)
        return inverse if self.gamma is None else inverse * self.gamma.double()

    def applied(self, y: Tensor, axis: int) -> Tensor:
        """Of `y`, whose channels are the axis `axis`, in torch's own float arithmetic."""
        # Not by F.batch_norm: some releases of torch refuse eps = 0 there, which a map of channels that is no BatchNorm has.
        y = y.movedim(axis, 1)
        return torch.batch_norm(y, self.gamma, self.beta, self.mean, self.var, False, 0.0, self.eps, False).movedim(1, axis)


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """Codes of a layer, carried by float tensors: `weight` float32 with output channels on axis 0, `scale` float32 `(C,)` or
    `(1,)`, `bias` float64 `(C,)`.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor


def folds_free(scheme: QuantScheme) -> bool:
    """Whether the factor of a BatchNorm can go into the scale: one free scale for each output channel."""
    return scheme.granularity == PerChannel(0) and not scheme.power_of_two


def folded_bias(bias: Tensor | None, norm: Normalization | None, channels: int, like: Tensor) -> Tensor:
    """`b' = beta + (b - mean) * f`, float64, `(C,)`."""
    b = torch.zeros(channels, dtype=torch.float64, device=like.device) if bias is None else bias.double()
    if norm is None:
        return b
    b = (b - norm.mean.double()) * norm.factor()
    return b if norm.beta is None else b + norm.beta.double()


def fold(
    weight: Tensor,
    scale: Tensor,
    scheme: QuantScheme,
    bias: Tensor | None,
    norm: Normalization | None,
    input_scale: Tensor,
    chosen: Tensor | None = None,
) -> IntegerWeights:
    """Integers of a layer. `weight` has its output channels on axis 0 and `scale` is the weight's own scale, `(C,)` or `()`:
    of `w` where scales are free, of the folded weight `w * f` where they are tied. `chosen`: the codes on that scale, where an
    algorithm chose others than the nearest.
    """
    channels = weight.shape[0]
    b = folded_bias(bias, norm, channels, weight)
    factor = torch.ones(channels, dtype=torch.float64, device=weight.device) if norm is None else norm.factor()
    sx = input_scale.double()
    floor = torch.clamp(torch.maximum(b.abs() / MAX_BIAS, torch.full_like(b, MIN_PRODUCT)) / sx, min=MIN_FOLDED_SCALE)
    free = folds_free(scheme)
    wanted = (scale.double() * factor.abs() if free else scale.double()).reshape(-1)
    if scheme.granularity != PerChannel(0):
        floor = floor.max().reshape(1)
    folded = torch.maximum(wanted, floor)
    floored = folded > wanted
    folded = bounded(folded, scheme) if scheme.power_of_two else folded.float()
    codes = _codes(weight, factor, folded, scheme)
    if free:
        own = _codes(weight, torch.ones_like(factor), scale.reshape(-1), scheme) if chosen is None else chosen
        chosen = own * along_axis(torch.where(factor < 0, -1.0, 1.0), 0, weight.dim())
    if chosen is not None:
        codes = torch.where(along_axis(floored, 0, weight.dim()), codes, chosen)
    codes = codes.contiguous()  # as in a file
    product = input_scale.float() * folded
    return IntegerWeights(codes, folded, torch.clamp(torch.round(b / product.double()), -MAX_BIAS, MAX_BIAS))


def _codes(weight: Tensor, factor: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
    """`clamp(rint(float32(w * f) / s))`, where `w * 1` is `w` exactly."""
    rank = weight.dim()
    scaled = (weight.double() * along_axis(factor, 0, rank)).float()
    if scheme.dtype.bits == 1 and scheme.dtype.signed:
        return binarize(scaled)
    return torch.clamp(torch.round(scaled / along_axis(scale, 0, rank)), scheme.qmin, scheme.qmax)
