"""What a deployment target computes, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ArithmeticRule = Literal["onnxruntime", "portable"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where the Int8 model will run.

    arithmetic: the named rule of add, mul, pooling and tables.
    saturating_pairs: CPUs of this target may sum pairs of u8 x s8 products in int16, so that a layer whose
        static bound exceeds 32767 must ship unsigned weights with zero point 128.
    """

    name: str
    arithmetic: ArithmeticRule
    saturating_pairs: bool

    def __str__(self) -> str:
        return self.name


ONNXRUNTIME = Target("onnxruntime", "onnxruntime", saturating_pairs=True)
"""onnxruntime on any x86 CPU: exact with and without VNNI."""
ONNXRUNTIME_VNNI = Target("onnxruntime-vnni", "onnxruntime", saturating_pairs=False)
"""onnxruntime on CPUs with VNNI only: signed weights always."""
PORTABLE = Target("portable", "portable", saturating_pairs=False)
"""Dequantize, float32 op, quantize: for runtimes whose arithmetic is not known here."""

TARGETS: dict[str, Target] = {t.name: t for t in (ONNXRUNTIME, ONNXRUNTIME_VNNI, PORTABLE)}
