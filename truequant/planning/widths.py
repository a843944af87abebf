"""Widths of residual streams: 8 bits, or 16 where a few channels are far larger than the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from truequant.planning.records import QuantizerPlan
from truequant.schemes import QuantScheme, integer_type

WIDE_BITS = 16
OUTLYING = 8.0
"""How many times its median channel's the range of a stream is at most, where 8 bits hold it."""


def of_width(scheme: QuantScheme, *, wide: bool) -> QuantScheme:
    """The scheme of a stream with codes of 16 bits, or of 8."""
    return replace(scheme, dtype=integer_type(f"{'int' if scheme.dtype.signed else 'uint'}{WIDE_BITS if wide else 8}"))


def is_wide_stream(greatest: Tensor) -> bool:
    """Whether a stream needs 16 bits. greatest: of each channel, the largest absolute value that was seen."""
    return bool(greatest.max() > OUTLYING * torch.median(greatest))


def chosen(quantizers: Sequence[QuantizerPlan], wide: Mapping[str, bool]) -> tuple[QuantizerPlan, ...]:
    """The quantizers of a plan with the widths that were found for its streams, by name."""
    return tuple(
        replace(q, scheme=of_width(q.scheme, wide=wide[q.name]), chosen=True) if q.name in wide else q for q in quantizers
    )
