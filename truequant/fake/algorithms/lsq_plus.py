"""LSQ+ (Bhalgat et al. 2020), whose learned offset takes effect as an integer zero point.

The paper's offset beta is a real number, and an integer runtime pads and folds with the code of 0, which must be an integer.
So `z = clamp(rint(-beta / s), qmin, qmax)`; the gradients are the paper's. Where `-beta / s` is an integer, the values are too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from truequant import numerics
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


class _Offset(torch.autograd.Function):
    """Equations 3 and 4, gradients 5 and 6.

    ds = sum g * {rint(u) - u inside; qmin below; qmax above}, dbeta = sum g * {0 inside; 1 outside}, dx = g inside, else 0;
    u = x / s + z, inside: qmin < u < qmax.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, beta: Tensor, qmin: int, qmax: int) -> Tensor:
        zero_point = torch.clamp(torch.round(-beta / scale), qmin, qmax)
        ctx.save_for_backward(x, scale, beta, zero_point)
        ctx.range = (qmin, qmax)
        codes = torch.clamp(torch.round(x.float() / scale) + zero_point, qmin, qmax)
        return ((codes - zero_point) * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, beta, zero_point = ctx.saved_tensors
        qmin, qmax = ctx.range
        position = x.float() / scale + zero_point
        inside = (position > qmin) & (position < qmax)
        codes = torch.clamp(torch.round(x.float() / scale) + zero_point, qmin, qmax)
        g = grad.float()
        d_scale = (g * torch.where(inside, codes - position, codes)).sum_to_size(scale.shape)
        d_beta = torch.where(inside, 0.0, g).sum_to_size(beta.shape)
        # 0 has a code at any time: an offset at the end of its range moves back, never on.
        outward = ((-beta / scale > qmax) & (d_beta > 0)) | ((-beta / scale < qmin) & (d_beta < 0))
        return torch.where(inside, grad, 0.0), d_scale, torch.where(outward, 0.0, d_beta), None, None


def fake_with_offset(x: Tensor, scale: Tensor, beta: Tensor, scheme: QuantScheme) -> Tensor:
    """Fake quantization whose scale and offset are trained."""
    result: Tensor = _Offset.apply(x, scale, beta, scheme.qmin, scheme.qmax)  # type: ignore[no-untyped-call]
    return result


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
