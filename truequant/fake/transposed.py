"""Transposed convolutions as layers: their weight seen with the output channels first.

torch keeps the weight of a transposed convolution as `(in, out / groups, *kernel)`. Quantizers, BatchNorm folding and integer
layers work on `(out, in / groups, *kernel)`, as for every other layer; the two views are inverse to each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

TRANSPOSED: dict[str, Callable[..., Tensor]] = {
    "conv_transpose1d": F.conv_transpose1d,
    "conv_transpose2d": F.conv_transpose2d,
    "conv_transpose3d": F.conv_transpose3d,
}


def as_layer(weight: Tensor, groups: int) -> Tensor:
    """`(in, out / groups, *kernel)` as `(out, in / groups, *kernel)`."""
    parts = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).transpose(1, 2)
    return parts.reshape(-1, *parts.shape[2:])


def as_transposed(weight: Tensor, groups: int) -> Tensor:
    """`(out, in / groups, *kernel)` as `(in, out / groups, *kernel)`."""
    return as_layer(weight, groups)


def layer_weight(op: str, module: Any) -> Tensor:
    """The weight of a module of torch's, output channels first."""
    weight: Tensor = module.weight
    return as_layer(weight, module.groups) if op in TRANSPOSED else weight


def module_call(op: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Tensor]:
    """`linear(x, weight, bias)` of a transposed convolution, its weight as a layer's."""
    size = args[1] if len(args) > 1 else kwargs.get("output_size")
    x = args[0] if args else kwargs["input"]
    n = len(module.kernel_size)
    padding = module._output_padding(x, size, module.stride, module.padding, module.kernel_size, n, module.dilation)
    rest = (module.stride, module.padding, padding, module.groups, module.dilation)
    return lambda x, w, b: TRANSPOSED[op](x, as_transposed(w, module.groups), b, *rest)
