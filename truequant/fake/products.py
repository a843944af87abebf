"""The product of a linear layer in training, which keeps for its backward what its quantized operands were made from."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _len_torch_function_stack

from truequant import kernels


def product(
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """`linear(x, weight, bias)`.

    torch keeps `x` and `weight` for the backward: two tensors beside the ones that were quantized, of which the float model
    keeps the same two. A kernel keeps those instead where they are still there, and quantizes them again.
    """
    if linear is F.linear and not torch.compiler.is_compiling() and (kernel := kernels.compiled()) is not None:
        y = NotImplemented if _len_torch_function_stack() else kernel.linear(x, weight, bias)
        if y is not NotImplemented:
            return y  # type: ignore[no-any-return]
    return linear(x, weight, bias)
