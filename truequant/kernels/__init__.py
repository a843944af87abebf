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
from truequant.kernels.products import Result, Windows, layer_of_codes, products_of_codes, quantized_values, sum_of_codes

__all__ = [
    "CLAMP", "HARDTANH", "NO_CLIP", "RELU", "Clip", "Result", "Windows", "clipped", "compiled", "describe",
    "dynamic_linear", "fake_binarize", "fake_quantize", "fake_quantize_learned", "fake_quantize_observed",
    "fake_quantize_offset", "fake_quantize_tokens", "fingerprint", "is_plain", "layer_of_codes", "learned_scale",
    "least_error", "level", "levels", "on_device", "products_of_codes", "quantize_channels", "quantized_values",
    "sum_of_codes", "use", "using", "weight_codes", "weight_on_grid",
]  # fmt: skip
