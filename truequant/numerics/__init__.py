"""The arithmetic: pure functions on tensors, one definition for training, evaluation, conversion and export."""

from truequant.numerics.affine import (
    along_axis,
    binarize,
    dequantize,
    expand,
    outside,
    parameter_shape,
    quantize,
    recover,
)
from truequant.numerics.attention import BYTE, attended, causal, exponentials, raised, row_sums, softmax
from truequant.numerics.bounds import (
    FLOAT32_EXACT,
    FLOAT64_EXACT,
    INT16_MAX,
    INT32_MAX,
    accumulator_bound,
    pair_bound,
    products_in_int16,
    taps_of_a_phase,
)
from truequant.numerics.clipping import InputClipping
from truequant.numerics.elementwise import Pointwise, Qparams, add, add_on_arm, fma, mul, pointwise, sub, table
from truequant.numerics.folding import IntegerWeights, Normalization, fold, folded_bias, folds_free
from truequant.numerics.norms import (
    NormConstants,
    NormKind,
    NormRule,
    norm_codes,
    norm_constants,
    normalized,
    too_long,
)
from truequant.numerics.qparams import (
    MAX_SCALE,
    MIN_SCALE,
    bounded,
    power_of_two,
    range_of,
    scale_and_zero_point,
    stored_scale,
)
from truequant.numerics.requantize import (
    channel_axis,
    clamp_codes,
    global_average_factor,
    multiplier,
    product_values,
    requantize,
)
from truequant.numerics.tokens import dynamic_linear, stored_values, token_codes, weight_values

__all__ = [
    "BYTE", "FLOAT32_EXACT", "FLOAT64_EXACT", "INT16_MAX", "INT32_MAX", "MAX_SCALE", "MIN_SCALE", "InputClipping",
    "IntegerWeights", "NormConstants", "NormKind", "NormRule", "Normalization", "Pointwise", "Qparams", "accumulator_bound",
    "add", "add_on_arm", "along_axis", "attended", "binarize", "bounded", "causal", "channel_axis", "clamp_codes",
    "dequantize", "dynamic_linear", "expand", "exponentials", "fma", "fold", "folded_bias", "folds_free",
    "global_average_factor", "mul", "multiplier", "norm_codes", "norm_constants", "normalized", "outside", "pair_bound",
    "parameter_shape", "pointwise", "power_of_two", "product_values", "products_in_int16", "quantize", "raised", "range_of",
    "recover", "requantize", "row_sums", "scale_and_zero_point", "softmax", "stored_scale", "stored_values", "sub", "table",
    "taps_of_a_phase", "token_codes", "too_long", "weight_values",
]  # fmt: skip
