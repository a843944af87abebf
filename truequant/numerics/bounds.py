"""What an accumulator can reach, from the codes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT32_EXACT = 2**24
"""Integers below it, and their sums in any order, are exact in float32."""
FLOAT64_EXACT = 2**53
"""The same of float64."""
INT16_MAX = 32767
INT32_MAX = 2**31 - 1


def accumulator_bound(weight: Tensor, bias: Tensor | None, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """`max over channels of sum |xq - zx| |wq| + |bq|`, a 0-d float64 tensor. `weight` has its channels on axis 0."""
    reach = torch.maximum((qmin - zero_point).abs(), (qmax - zero_point).abs()).double()
    sums = weight.double().abs().flatten(1).sum(1) * reach
    if bias is not None:
        sums = sums + bias.double().abs()
    return sums.max() if sums.numel() else sums.new_zeros(())


def products_in_int16(shape: Sequence[int], groups: int) -> int:
    """How many products u8 x s8 a kernel of x86 without VNNI adds in int16, for a weight `(out, in / groups, *kernel)`.

    Two; one where a channel has one weight, and in depthwise layers of one output to a channel, whose kernels add in int32:
    measured for onnxruntime and OpenVINO in one to three dimensions, kernels of 2 to 15, strided and dilated.
    """
    depthwise = shape[0] == groups and shape[1] == 1
    return 1 if depthwise else min(2, math.prod(shape[1:]))


def taps_of_a_phase(kernel: int, stride: int, dilation: int) -> int:
    """Along one axis, how many weights of a transposed convolution reach one output at most: it is a convolution of so many for
    each of `stride` phases.
    """
    return dilation * (kernel - 1) // stride + 1


def pair_bound(weight: Tensor, qmax: int, groups: int = 1) -> int:
    """The largest sum of products u8 x s8 that a kernel without VNNI may form in int16 (`products_in_int16`): `qmax` times
    the sum of the largest weights of one sign in a channel. Above 32767 the layer can saturate.
    """
    flat = weight.flatten(1)  # no wider copy: a weight may be a large part of the memory
    if flat.numel() == 0:
        return 0
    count = products_in_int16(weight.shape, groups)
    positive = flat.topk(count, dim=1).values.double().clamp(min=0).sum(1).max()
    negative = flat.topk(count, dim=1, largest=False).values.double().clamp(max=0).sum(1).min()
    return int(qmax * torch.maximum(positive, -negative))
