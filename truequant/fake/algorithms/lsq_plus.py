"""LSQ+ (Bhalgat et al. 2020), whose learned offset takes effect as an integer zero point.

The paper's offset beta is a real number, and an integer runtime pads and folds with the code of 0, which must be an integer.
So `z = clamp(rint(-beta / s), qmin, qmax)`; the gradients are the paper's. Where `-beta / s` is an integer, the values are too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from truequant import kernels, numerics
from truequant.fake.algorithms import lsq
from truequant.fake.algorithms.algorithm import Algorithm, with_gain
from truequant.observers import grouped
from truequant.schemes import QuantScheme


def offset_in_force(initial: Tensor, zero_point: Tensor, offset: Tensor) -> Tensor:
    """beta: at first `-z * s`; the parameter moves it in units of the initial scale."""
    return (offset.float() - zero_point) * initial


def zero_point_of(beta: Tensor, scale: Tensor, scheme: QuantScheme) -> Tensor:
    """The integer zero point of a real offset."""
    return torch.clamp(torch.round(-beta / scale), scheme.qmin, scheme.qmax)


def trainable_offset(scheme: QuantScheme, initial: Tensor, zero_point: Tensor, offset: Tensor, elements: int) -> Tensor:
    """beta with the gradient scale of the step size (section 3.1), as a step of beta's own."""
    gain = lsq.gradient_scale(scheme, elements) / (initial * initial)
    return with_gain(offset_in_force(initial, zero_point, offset), gain)


def fake_with_offset(
    x: Tensor, scale: Tensor, beta: Tensor, scheme: QuantScheme, clip: kernels.Clip = kernels.NO_CLIP
) -> Tensor:
    """Fake quantization whose scale and offset are trained."""
    return kernels.fake_quantize_offset(x, scale, beta, scheme.qmin, scheme.qmax, clip=clip)


def weight_scale(weight: Tensor, scheme: QuantScheme) -> Tensor | None:
    """Section 3.3: `max(|mean - 3 std|, |mean + 3 std|) / 2^(b - 1)` of the weights that share a scale. Not of binary ones."""
    if scheme.dtype.bits == 1:
        return None
    rows = grouped(weight.float(), scheme.granularity)
    count = torch.isfinite(rows).sum(-1).clamp(min=1)
    mean = rows.nansum(-1) / count
    deviation = ((rows - mean[..., None]).square().nansum(-1) / count).sqrt()
    reach = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs())
    return numerics.bounded(reach / 2.0 ** (scheme.dtype.bits - 1), scheme)


ALGORITHM = Algorithm(fake=lsq.fake, trainable=lsq.trainable, weight_scale=weight_scale)
