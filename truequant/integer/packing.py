"""Small codes side by side in bytes, as they lie in files.

1 bit holds {-1, +1}, 2 bits hold -2 … 1, 4 bits hold -8 … 7 (so 3-bit codes take 4). The first code is in the lowest bits of
the first byte; two's complement, except that 1 bit is 1 for +1. Unused bits of the last byte are 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def narrowest(codes: Tensor) -> int:
    """The bits, 1, 2, 4 or 8, in which int8 codes can be kept."""
    low, high = int(codes.min()), int(codes.max())
    if low == -1 and high == 1 and not bool((codes == 0).any()):
        return 1
    if low >= -2 and high <= 1:
        return 2
    return 4 if low >= -8 and high <= 7 else 8


def packed_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Bytes that codes of `shape` take."""
    return -(-math.prod(shape) * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """int8 codes of any shape as uint8 `(packed_bytes,)`.

    >>> pack(torch.tensor([-8, 7, 1], dtype=torch.int8), 4).tolist()
    [120, 1]
    """
    flat = codes.reshape(-1).to(torch.int32)
    flat = (flat > 0).to(torch.int32) if bits == 1 else flat & ((1 << bits) - 1)
    count = 8 // bits
    flat = torch.nn.functional.pad(flat, [0, -flat.numel() % count]).reshape(-1, count)
    return (flat << _shifts(bits)).sum(1).to(torch.uint8)


def unpack(data: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The codes that `pack` was given.

    >>> unpack(torch.tensor([120, 1], dtype=torch.uint8), 4, (3,)).tolist()
    [-8, 7, 1]
    """
    fields = (data.to(torch.int32).reshape(-1, 1) >> _shifts(bits)) & ((1 << bits) - 1)
    flat = fields.reshape(-1)[: math.prod(shape)]
    signed = 2 * flat - 1 if bits == 1 else flat - ((flat >> (bits - 1)) << bits)
    return signed.to(torch.int8).reshape(shape)


def _shifts(bits: int) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.int32)
