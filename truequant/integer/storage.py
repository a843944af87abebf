"""How codes lie in memory, and how elementwise arithmetic runs over them without large intermediates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from truequant.integer.edge import Edge

CHUNK = 2**20
"""Elements of one intermediate tensor: 4 MiB of float32, which caches nearly hold and for which a thread is worth waking."""


def storage(edge: Edge) -> torch.dtype:
    """The narrowest integer dtype that holds an edge's codes: uint8 or int8 up to 8 bits, then int16, int32 for uint16."""
    for dtype in (torch.uint8, torch.int8, torch.int16):
        if torch.iinfo(dtype).min <= edge.qmin and edge.qmax <= torch.iinfo(dtype).max:
            return dtype
    return torch.int32


def table_dtype(edge: Edge) -> torch.dtype:
    """The dtype in which a table holds codes of an edge."""
    return torch.int16 if edge.qmax <= torch.iinfo(torch.int16).max else torch.int32


def scale_of(edge: Edge, like: Tensor) -> Tensor:
    """The scale as a 0-d float32 tensor on the device of `like`."""
    return torch.tensor(edge.scale, dtype=torch.float32, device=like.device)


def zero_point_of(edge: Edge, like: Tensor) -> Tensor:
    """The zero point as a 0-d float32 tensor on the device of `like`."""
    return torch.tensor(edge.zero_point, dtype=torch.float32, device=like.device)


def elementwise(function: Callable[..., Tensor], dtype: torch.dtype, *tensors: Tensor) -> Tensor:
    """`function` of broadcast tensors, stored as `dtype`, computed piece by piece: it must act on each element alone."""
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    flat = [tensor.expand(shape).reshape(-1) for tensor in tensors]
    result = torch.empty(flat[0].shape, dtype=dtype, device=flat[0].device)
    for begin in range(0, result.numel(), CHUNK):
        piece = slice(begin, begin + CHUNK)
        result[piece] = function(*(tensor[piece] for tensor in flat))
    return result.reshape(shape)
