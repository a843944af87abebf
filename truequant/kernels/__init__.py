"""Fake quantization, forward and backward: compiled where it can be, in plain torch everywhere."""

from truequant.kernels.levels import compiled, describe, level, levels, use, using
from truequant.kernels.reference import fake_binarize, fake_quantize, fake_quantize_learned

__all__ = [
    "compiled", "describe", "fake_binarize", "fake_quantize", "fake_quantize_learned", "level", "levels", "use", "using",
]  # fmt: skip
