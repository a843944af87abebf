"""The kernels of a CUDA device, in Triton: what `reference` defines, bit for bit, in one pass over the elements.

Elements are numbered in the order in which they lie in memory, so that every dense layout is one run of numbers: the channel of
element `i` is `i // inner % channels`. Divisions are those of IEEE 754, and no product is contracted with a sum.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

BLOCK = 1024
"""Elements of one program: a multiple of 8, so that no byte of a mask is shared."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _rint(x: Any) -> Any:
    """Round half to even: beyond 2^22 no code is inside its range, whatever becomes of the fraction."""
    shifted = (x + 12582912.0) - 12582912.0
    return tl.where(tl.abs(x) < 4194304.0, shifted, x)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _clamp(codes: Any, qmin: Any, qmax: Any) -> Any:
    """NaN stays."""
    return tl.where(codes < qmin, qmin, tl.where(codes > qmax, qmax, codes))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _pack(bits: Any, BLOCK: tl.constexpr) -> Any:
    """Eight truth values a byte, the first in the lowest bit."""
    weights = tl.arange(0, 8)[None, :]
    return tl.sum(tl.reshape(bits.to(tl.int32), (BLOCK // 8, 8)) << weights, axis=1).to(tl.uint8)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def forward(
    x_at: Any, y_at: Any, mask_at: Any, low_at: Any, high_at: Any, scale_at: Any, zero_at: Any, n: Any, inner: Any,
    channels: Any, qmin: Any, qmax: Any, PER_CHANNEL: tl.constexpr, MASKED: tl.constexpr, OBSERVES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """y, a bit for each element whose code was not clipped, and the smallest and largest of each program's elements."""
    program = tl.program_id(0)
    index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = index < n
    x = tl.load(x_at + index, mask=there, other=0.0).to(tl.float32)
    if PER_CHANNEL:
        channel = index // inner % channels
        scale = tl.load(scale_at + channel)
        zero = tl.load(zero_at + channel)
    else:
        scale = tl.load(scale_at)
        zero = tl.load(zero_at)
    codes = _rint(tl.div_rn(x, scale)) + zero
    clipped = _clamp(codes, qmin, qmax)
    y = (clipped - zero) * scale
    tl.store(y_at + index, y.to(y_at.dtype.element_ty), mask=there)
    if MASKED:
        packed = _pack(codes == clipped, BLOCK)
        byte = program.to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        tl.store(mask_at + byte, packed, mask=byte < (n + 7) // 8)
    if OBSERVES:
        # NaN would be lost on the way: a program that saw one reports it.
        nan = tl.max((there & (x != x)).to(tl.int32), axis=0) > 0
        low = tl.min(tl.where(there & (x == x), x, float("inf")), axis=0)
        high = tl.max(tl.where(there & (x == x), x, float("-inf")), axis=0)
        tl.store(low_at + program, tl.where(nan, float("nan"), low))
        tl.store(high_at + program, tl.where(nan, float("nan"), high))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def backward(g_at: Any, mask_at: Any, d_at: Any, n: Any, BLOCK: tl.constexpr) -> None:
    """The gradient where its bit is set, else 0."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = index < n
    g = tl.load(g_at + index, mask=there, other=0.0)
    byte = tl.load(mask_at + index // 8, mask=there, other=0)
    kept = ((byte.to(tl.int32) >> (index % 8).to(tl.int32)) & 1) != 0
    tl.store(d_at + index, tl.where(kept, g, 0.0).to(d_at.dtype.element_ty), mask=there)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def learned_backward(
    g_at: Any, x_at: Any, d_at: Any, slope_at: Any, scale_at: Any, zero_at: Any, n: Any, inner: Any, channels: Any,
    qmin: Any, qmax: Any, PER_CHANNEL: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """LSQ: the gradient of x; that of the scale as a sum for each program, or an element at a time where scales are many."""
    program = tl.program_id(0)
    index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = index < n
    x = tl.load(x_at + index, mask=there, other=0.0).to(tl.float32)
    g = tl.load(g_at + index, mask=there, other=0.0)
    if PER_CHANNEL:
        channel = index // inner % channels
        scale = tl.load(scale_at + channel)
        zero = tl.load(zero_at + channel)
    else:
        scale = tl.load(scale_at)
        zero = tl.load(zero_at)
    position = tl.div_rn(x, scale)
    inside = (position + zero > qmin) & (position + zero < qmax)
    codes = _clamp(_rint(position) + zero, qmin, qmax) - zero
    tl.store(d_at + index, tl.where(inside, g, 0.0).to(d_at.dtype.element_ty), mask=there)
    slope = g.to(tl.float32) * tl.where(inside, codes - position, codes)
    if PER_CHANNEL:
        tl.store(slope_at + index, slope, mask=there)
    else:
        tl.store(slope_at + program, tl.sum(tl.where(there, slope, 0.0), axis=0))
