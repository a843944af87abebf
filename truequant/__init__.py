"""truequant: quantization-aware training whose Int8 model is, bit for bit, the model you validated."""

from truequant.analysis import Verification, verify
from truequant.calibration import calibrate
from truequant.errors import TruequantError
from truequant.fake import FakeQuantize, QATModuleWrapper, codes, freeze, quantizers, quantizers_off, unfreeze
from truequant.integer import Int8Model, load
from truequant.observers import ActivationObserver, MovingAverageStatistics
from truequant.planning import Plan, plan
from truequant.runtimes import compile, export_onnx
from truequant.schemes import (
    LSQ,
    MSE,
    Entropy,
    FloatScale,
    Histogram,
    MinMax,
    MovingAverage,
    Percentile,
    PerChannel,
    PerGroup,
    PerTensor,
    PowerOfTwoScale,
    QConfig,
    QuantScheme,
    Rule,
    int1,
    int2,
    int3,
    int4,
    int7,
    int8,
    uint1,
    uint2,
    uint3,
    uint4,
    uint8,
)
from truequant.transform import convert, prepare, restore_float

__all__ = [
    "LSQ", "MSE", "ActivationObserver", "Entropy", "FakeQuantize", "FloatScale", "Histogram", "Int8Model", "MinMax",
    "MovingAverage", "MovingAverageStatistics", "PerChannel", "PerGroup", "PerTensor", "Percentile", "Plan",
    "PowerOfTwoScale", "QATModuleWrapper", "QConfig", "QuantScheme", "Rule", "TruequantError", "Verification", "calibrate",
    "codes", "compile", "convert", "export_onnx", "freeze", "int1", "int2", "int3", "int4", "int7", "int8", "load", "plan",
    "prepare", "quantizers", "quantizers_off", "restore_float", "uint1", "uint2", "uint3", "uint4", "uint8", "unfreeze",
    "verify",
]  # fmt: skip
