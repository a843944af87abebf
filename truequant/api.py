"""The whole public API: what `import truequant as tq` offers.

`truequant/__init__.py` reads here which room a name is loaded from when it is first used.
"""

from truequant.analysis import (
    Latency,
    LayerFacts,
    MultiplyAccumulates,
    Sensitivity,
    Size,
    Verification,
    assert_exact,
    replay,
    search,
    sensitivity,
    verify,
)
from truequant.calibration import (
    GPTQ,
    AdaRound,
    BiasCorrection,
    BlockReconstruction,
    CrossLayerEqualization,
    SmoothQuant,
    calibrate,
    replace_relu6,
    update_ewgs,
)
from truequant.checkpoints import Checkpoint, CheckpointManager, StatefulSampler, load_checkpoint, save_checkpoint
from truequant.errors import TruequantError
from truequant.fake import (
    FakeQuantize,
    FakeQuantizeLayer,
    QATModuleWrapper,
    Statistics,
    codes,
    detect_anomaly,
    freeze,
    quantizers,
    quantizers_off,
    statistics,
    unfreeze,
)
from truequant.integer import Int8Model, load
from truequant.observers import ActivationObserver, MovingAverageStatistics
from truequant.planning import Plan, plan, register_op
from truequant.reports import report
from truequant.runtimes import compile, export_gguf, export_onnx, export_program, export_tflite, lint
from truequant.schemes import (
    EWGS,
    LSQ,
    MSE,
    PACT,
    TQT,
    TWN,
    DoReFa,
    Dynamic,
    Entropy,
    FloatScale,
    Freezing,
    Fusions,
    Histogram,
    LSQPlus,
    MinMax,
    MovingAverage,
    Nearest,
    Percentile,
    PerChannel,
    PerGroup,
    PerTensor,
    PowerOfTwoScale,
    QConfig,
    QuantScheme,
    Rule,
    Stochastic,
    int1,
    int2,
    int3,
    int4,
    int7,
    int8,
    int16,
    uint1,
    uint2,
    uint3,
    uint4,
    uint8,
    uint16,
)
from truequant.training import (
    Distillation,
    GradientMonitor,
    History,
    QATSchedule,
    evaluate,
    figures,
    oscillation_dampening,
    parameter_groups,
    reestimate_batchnorm,
)
from truequant.transform import QATPreparer, convert, prepare, restore_float

__all__ = [
    "EWGS", "GPTQ", "LSQ", "MSE", "PACT", "TQT", "TWN", "ActivationObserver", "AdaRound", "BiasCorrection",
    "BlockReconstruction", "Checkpoint", "CheckpointManager", "CrossLayerEqualization", "Distillation", "DoReFa", "Dynamic",
    "Entropy", "FakeQuantize", "FakeQuantizeLayer", "FloatScale", "Freezing", "Fusions", "GradientMonitor", "Histogram",
    "History", "Int8Model", "LSQPlus", "Latency", "LayerFacts", "MinMax", "MovingAverage", "MovingAverageStatistics",
    "MultiplyAccumulates", "Nearest", "PerChannel", "PerGroup", "PerTensor", "Percentile", "Plan", "PowerOfTwoScale",
    "QATModuleWrapper", "QATPreparer", "QATSchedule", "QConfig", "QuantScheme", "Rule", "Sensitivity", "Size", "SmoothQuant",
    "StatefulSampler", "Statistics", "Stochastic", "TruequantError", "Verification", "assert_exact", "calibrate", "codes",
    "compile", "convert", "detect_anomaly", "evaluate", "export_gguf", "export_onnx", "export_program", "export_tflite",
    "figures", "freeze", "int1", "int2", "int3", "int4", "int7", "int8", "int16", "lint", "load", "load_checkpoint",
    "oscillation_dampening", "parameter_groups", "plan", "prepare", "quantizers", "quantizers_off", "reestimate_batchnorm",
    "register_op", "replace_relu6", "replay", "report", "restore_float", "save_checkpoint", "search", "sensitivity",
    "statistics", "uint1", "uint2", "uint3", "uint4", "uint8", "uint16", "unfreeze", "update_ewgs", "verify",
]  # fmt: skip
