"""Other roundings than the nearest, for observed and learned scales: stochastic, and element-wise gradient scaling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from truequant.schemes import EWGS, QuantScheme, Stochastic


class _Rounded(torch.autograd.Function):
    """y = (q - z) * s with q = clamp(round(x / s) + z); m is what the gradient of the rounding is multiplied by:

        m = 1 + delta * sign(g) * (x / s + z - q) / (qmax - qmin)      (Lee, Kim and Ham 2021; else delta = 0)
        dx = g * m inside, else 0;   ds = sum g * {q - z - m * x / s inside; q - z outside}

    because y = s * round(x / s): s acts directly and through what is rounded. Inside: the code is not clipped; for a learned
    scale, as in LSQ, qmin < x / s + z < qmax.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme) -> Tensor:
        position = x.float() / scale
        if isinstance(scheme.rounding, Stochastic):
            rounded = torch.floor(position + torch.rand_like(position))  # Gupta et al. 2015, section 3
        else:
            rounded = torch.round(position)
        codes = rounded + zero_point
        clipped = torch.clamp(codes, scheme.qmin, scheme.qmax)
        if scheme.learned:
            inside = (position + zero_point > scheme.qmin) & (position + zero_point < scheme.qmax)
        else:
            inside = codes == clipped
        ctx.save_for_backward(position, clipped - zero_point, inside, scale)
        ctx.scheme = scheme
        return ((clipped - zero_point) * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        position, codes, inside, scale = ctx.saved_tensors
        scheme = ctx.scheme
        delta = scheme.rounding.delta if isinstance(scheme.rounding, EWGS) else 0.0
        g = grad.float()
        m = 1.0 + delta * torch.sign(g) * (position - codes) / (scheme.qmax - scheme.qmin)
        d_scale = None
        if ctx.needs_input_grad[1]:
            d_scale = (g * torch.where(inside, codes - m * position, codes)).sum_to_size(scale.shape)
        through = torch.where(inside, g * m, g * m if scheme.gradient == "identity" and not scheme.learned else 0.0)
        return through.to(grad.dtype), d_scale, None, None


def fake(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme) -> Tensor:
    """Fake quantization with the scheme's rounding."""
    result: Tensor = _Rounded.apply(x, scale, zero_point, scheme)  # type: ignore[no-untyped-call]
    return result
