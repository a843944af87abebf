"""Fake quantization, forward and backward: compiled where it can be, on a GPU by Triton, in plain torch everywhere."""

from truequant.kernels.chosen import fake_quantize, fake_quantize_learned, fake_quantize_observed, on_device
from truequant.kernels.levels import compiled, describe, level, levels, use, using
from truequant.kernels.reference import fake_binarize

__all__ = [
    "compiled", "describe", "fake_binarize", "fake_quantize", "fake_quantize_learned",
    "fake_quantize_observed", "level", "levels", "on_device", "use", "using",
]  # fmt: skip
