"""Fake quantization, forward and backward."""

from truequant.kernels.reference import fake_binarize, fake_quantize, fake_quantize_learned

__all__ = ["fake_binarize", "fake_quantize", "fake_quantize_learned"]
