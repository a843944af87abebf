"""Decisions as frozen values: no tensors, no modules."""

from truequant.schemes import scales
from truequant.schemes.config import PRESETS, QConfig, config_from_table, is_dynamic
from truequant.schemes.defaults import ACTIVATION_8, WEIGHT_8, Ends
from truequant.schemes.dtypes import (
    INTEGER_TYPES,
    IntegerType,
    int1,
    int2,
    int3,
    int4,
    int5,
    int6,
    int7,
    int8,
    int16,
    integer_type,
    uint1,
    uint2,
    uint3,
    uint4,
    uint5,
    uint6,
    uint7,
    uint8,
    uint16,
)
from truequant.schemes.fusions import Fusions
from truequant.schemes.granularity import Granularity, PerChannel, PerGroup, PerTensor
from truequant.schemes.rounding import EWGS, Freezing, Nearest, Rounding, Stochastic
from truequant.schemes.rules import INHERIT, Choice, Inherit, Rule, Selector
from truequant.schemes.scales import *  # noqa: F403
from truequant.schemes.scales import SCALE_RULES, ScaleRule
from truequant.schemes.scheme import QuantScheme
from truequant.schemes.strategies import MSE, Dynamic, Entropy, Histogram, MinMax, MovingAverage, Observation, Percentile
from truequant.schemes.targets import (
    ONNXRUNTIME,
    ONNXRUNTIME_ARM,
    ONNXRUNTIME_SSE,
    ONNXRUNTIME_VNNI,
    PORTABLE,
    QNN,
    RULES,
    TARGETS,
    TENSORRT,
    XNNPACK,
    ArithmeticRule,
    Cpu,
    OpRule,
    Target,
)
from truequant.schemes.text import LARGEST_FILE

__all__ = [
    "ACTIVATION_8", "EWGS", "INHERIT", "INTEGER_TYPES", "LARGEST_FILE", "MSE", "ONNXRUNTIME", "ONNXRUNTIME_ARM",
    "ONNXRUNTIME_SSE", "ONNXRUNTIME_VNNI", "PORTABLE", "PRESETS", "QNN", "RULES", "SCALE_RULES", "TARGETS", "TENSORRT",
    "WEIGHT_8", "XNNPACK", "ArithmeticRule", "Choice", "Cpu", "Dynamic", "Ends", "Entropy", "Freezing", "Fusions",
    "Granularity", "Histogram", "Inherit", "IntegerType", "MinMax", "MovingAverage", "Nearest", "Observation", "OpRule",
    "PerChannel", "PerGroup", "PerTensor", "Percentile", "QConfig", "QuantScheme", "Rounding", "Rule", "ScaleRule",
    "Selector", "Stochastic", "Target", "config_from_table", "int1", "int2", "int3", "int4", "int5", "int6", "int7", "int8",
    "int16", "integer_type", "is_dynamic", "uint1", "uint2", "uint3", "uint4", "uint5", "uint6", "uint7", "uint8", "uint16",
]  # fmt: skip
__all__ += scales.__all__
