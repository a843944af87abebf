"""Linear layers on values: integer weights, and tokens that become integers at run time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from truequant.integer.nodes import DynamicLinear, WeightOnlyLinear
from truequant.numerics import MAX_SCALE, MIN_SCALE


def weight_only(node: WeightOnlyLinear, program: object, x: Tensor) -> Tensor:
    """`x` `(…, in)` to `(…, out)`, float32 sums."""
    groups = node.weight.to(x.device).float().unflatten(1, (node.weight_scale.shape[1], -1))
    weight = (groups * node.weight_scale.to(x.device)[:, :, None]).flatten(1)
    return F.linear(x.float(), weight, _bias(node, x))


def dynamic(node: DynamicLinear, program: object, x: Tensor) -> Tensor:
    """Each token on its own grid, exact integer sums; the sums of several groups are added up in float64."""
    x = x.float()
    scale, weight = node.weight_scale.to(x.device), node.weight.to(x.device).double()
    largest = torch.amax(torch.abs(x), dim=-1, keepdim=True)
    step = torch.clamp(largest / node.qmax, min=MIN_SCALE, max=MAX_SCALE)
    codes = torch.clamp(torch.round(x / step), min=-node.qmax, max=node.qmax).double()
    if scale.shape[1] > 1:
        weight = (weight.unflatten(1, (scale.shape[1], -1)) * scale.double()[:, :, None]).flatten(1)
        y = (codes @ weight.t()).float() * step
    else:
        y = (codes @ weight.t()).float() * scale.squeeze(1) * step
    bias = _bias(node, x)
    return y if bias is None else torch.add(y, bias)


def _bias(node: WeightOnlyLinear | DynamicLinear, x: Tensor) -> Tensor | None:
    return None if node.bias is None else node.bias.to(x.device)
