"""Which ops share a training pass with the quantizer behind them, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fusions:
    """In training an op and the quantizer behind it run as one pass over memory, where a compiled kernel is there for both.

    clamp: ReLU, ReLU6, hardtanh, clamp. The result is that of the two ops, bit for bit.
    add: the sum of two activations, and a clamp right behind it. Bit for bit too.
    norm: BatchNorm in training behind its layer, and a clamp right behind it. Its sums run in double precision in an order
        of their own, so that results differ from torch's by float32 rounding.
    linear: the products of a linear layer, whose operands were just quantized, as codes: they are
        summed in integers, exactly, where float32 rounds every sum, so that results differ from torch's by that rounding.
    """

    clamp: bool = True
    add: bool = True
    norm: bool = True
    linear: bool = True
