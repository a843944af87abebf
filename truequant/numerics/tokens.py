"""Linear layers on values: weights of integers, and tokens whose scale is found at run time.

Tokens are the rows of the last axis. Weights have codes `(out, in)` and the scales of their groups `(out, groups)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from truequant.numerics.qparams import MAX_SCALE, MIN_SCALE


def token_codes(x: Tensor, qmax: int) -> tuple[Tensor, Tensor]:
    """`clamp(rint(x / s), -qmax, qmax)` and `s = clamp(max |x| / qmax, MIN_SCALE, MAX_SCALE)` of each token, `(…, 1)`."""
    scale = torch.clamp(x.abs().amax(-1, keepdim=True) / qmax, MIN_SCALE, MAX_SCALE)
    return torch.clamp(torch.round(x / scale), -qmax, qmax), scale


def weight_values(codes: Tensor, scale: Tensor) -> Tensor:
    """The weight that codes stand for, of the dtype of both."""
    return (codes.reshape(*scale.shape, -1) * scale[..., None]).reshape(codes.shape)


def stored_values(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight of int8 codes whose scale is `()`, `(C, 1, …)`, or `(C, groups)` of codes of two axes."""
    grouped = codes.dim() == scale.dim() == 2 and scale.shape[1] > 1
    return weight_values(codes.float(), scale) if grouped else codes.float() * scale


def dynamic_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, qmax: int) -> Tensor:
    """Each token on its own grid, exact integer sums; the sums of several groups are added up in float64. float32."""
    tokens, token = token_codes(x, qmax)
    tokens, weight = tokens.double(), codes.double()
    if scale.shape[1] == 1:
        y = (tokens @ weight.t()).float() * scale[:, 0] * token
    else:
        y = (tokens @ weight_values(weight, scale.double()).t()).float() * token
    return y if bias is None else y + bias
