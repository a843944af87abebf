"""Fake quantization, forward and backward: compiled where it can be, on a GPU by Triton, in plain torch everywhere."""

from truequant.kernels.chosen import (
    CLAMP,
    HARDTANH,
    NO_CLIP,
    RELU,
    Clip,
    clipped,
    fake_binarize,
    fake_quantize,
    fake_quantize_learned,
    fake_quantize_observed,
    fake_quantize_offset,
    learned_scale,
    on_device,
    quantize_channels,
)
from truequant.kernels.grids import (
    dynamic_linear,
    fake_quantize_tokens,
    fingerprint,
    is_plain,
    least_error,
    weight_codes,
    weight_on_grid,
)
from truequant.kernels.levels import compiled, describe, level, levels, use, using

__all__ = [
    "CLAMP", "HARDTANH", "NO_CLIP", "RELU", "Clip", "clipped", "compiled", "describe", "dynamic_linear", "fake_binarize",
    "fake_quantize", "fake_quantize_learned", "fake_quantize_observed", "fake_quantize_offset", "fake_quantize_tokens",
    "fingerprint", "is_plain", "learned_scale", "least_error", "level", "levels", "on_device", "quantize_channels", "use",
    "using", "weight_codes", "weight_on_grid",
]  # fmt: skip
