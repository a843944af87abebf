"""The product of a linear layer in training: of codes, in integers, and with a backward that quantizes its operands again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _len_torch_function_stack

from truequant import kernels

if TYPE_CHECKING:
    from truequant.fake.quantizers import FakeQuantize
    from truequant.fake.weights import WeightQuantizer


def product(
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Tensor, weight: Tensor, bias: Tensor | None,
    reads: FakeQuantize | None = None, quantizer: WeightQuantizer | None = None,
) -> Tensor:  # fmt: skip
    """`linear(x, weight, bias)`.

    torch keeps `x` and `weight` for the backward: two tensors beside the ones that were quantized, of which the float model
    keeps the same two. A kernel keeps those instead where they are still there, and quantizes them again.

    reads, quantizer: of `x` and `weight`. The codes of both are multiplied and summed in integers, where
    each element is found to lie on its grid: exactly, in a fraction of the time of float32, whose sums differ by rounding.
    """
    if linear is not F.linear or torch.compiler.is_compiling() or _len_torch_function_stack():
        return linear(x, weight, bias)
    if (kernel := kernels.compiled()) is None:
        return linear(x, weight, bias)
    grids = (None, None) if reads is None or quantizer is None else (reads.__dict__, quantizer.__dict__)
    y = kernel.linear(x, weight, bias, *grids)
    return linear(x, weight, bias) if y is NotImplemented else y
