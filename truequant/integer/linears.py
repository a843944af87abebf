"""Linear layers on values: integer weights, and tokens that become integers at run time."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from truequant import kernels, numerics
from truequant.integer.nodes import DynamicLinear, WeightOnlyLinear


def weight_only(node: WeightOnlyLinear, program: object, x: Tensor) -> Tensor:
    """`x` `(…, in)` to `(…, out)`, float32 sums."""
    weight = numerics.weight_values(node.weight.to(x.device).float(), node.weight_scale.to(x.device))
    return F.linear(x.float().contiguous(), weight, _bias(node, x))


def dynamic(node: DynamicLinear, program: object, x: Tensor) -> Tensor:
    """Integer sums of tokens, each on its own grid."""
    codes, scale = node.weight.to(x.device), node.weight_scale.to(x.device)
    return kernels.dynamic_linear(x.float(), codes, scale, _bias(node, x), node.qmax)


def _bias(node: WeightOnlyLinear | DynamicLinear, x: Tensor) -> Tensor | None:
    return None if node.bias is None else node.bias.to(x.device)
