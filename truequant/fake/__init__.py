"""The trained voice of the arithmetic: fake quantization in training, integer codes in evaluation."""

from truequant.fake.anomaly import detect_anomaly
from truequant.fake.attention import attention_scale, byte_table, shown_by, wide_table
from truequant.fake.call_sites import Ranked
from truequant.fake.clipping import input_clipping
from truequant.fake.clock import Clock, local, marking
from truequant.fake.control import forget, freeze, quantizers, quantizers_off, set_bits, unfreeze
from truequant.fake.evaluation import affine_integers, integers, norm_parameters, site_bounds, table_of, written_scale
from truequant.fake.ewgs import has_delta, keep_delta, set_delta
from truequant.fake.exploded import warn_of_exploded_ranges
from truequant.fake.float_linears import fake_quantize_tokens, integer_rows, integer_weight, ready
from truequant.fake.inputs import InputQuantizer
from truequant.fake.limits import Limits
from truequant.fake.parts import Parts
from truequant.fake.quantized_layer import FakeQuantizeLayer
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.recording import codes, evaluated, outermost
from truequant.fake.resizing import interpolation_weights
from truequant.fake.scores import FakeQuantizeScores
from truequant.fake.sites import RuntimeSite
from truequant.fake.statistics import QuantizerStatistics, Statistics, quantized_weights, statistics, watching
from truequant.fake.streams import Stream
from truequant.fake.transposed import TRANSPOSED, as_layer, layer_weight
from truequant.fake.untrained import Untrained
from truequant.fake.weights import WeightQuantizer
from truequant.fake.wrapper import QUANTIZERS, Binding, QATModuleWrapper, base_class, qat_class, swap, unswap

__all__ = [
    "QUANTIZERS",
    "TRANSPOSED",
    "Binding",
    "Clock",
    "FakeQuantize",
    "FakeQuantizeLayer",
    "FakeQuantizeScores",
    "InputQuantizer",
    "Limits",
    "Parts",
    "QATModuleWrapper",
    "QuantizerStatistics",
    "Ranked",
    "RuntimeSite",
    "Statistics",
    "Stream",
    "Untrained",
    "WeightQuantizer",
    "affine_integers",
    "as_layer",
    "attention_scale",
    "base_class",
    "byte_table",
    "codes",
    "detect_anomaly",
    "evaluated",
    "fake_quantize_tokens",
    "forget",
    "freeze",
    "has_delta",
    "input_clipping",
    "integer_rows",
    "integer_weight",
    "integers",
    "interpolation_weights",
    "keep_delta",
    "layer_weight",
    "local",
    "marking",
    "norm_parameters",
    "outermost",
    "qat_class",
    "quantized_weights",
    "quantizers",
    "quantizers_off",
    "ready",
    "set_bits",
    "set_delta",
    "shown_by",
    "site_bounds",
    "statistics",
    "swap",
    "table_of",
    "unfreeze",
    "unswap",
    "warn_of_exploded_ranges",
    "watching",
    "wide_table",
    "written_scale",
]  # fmt: skip
