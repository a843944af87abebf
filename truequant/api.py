"""The whole public API: what `import truequant as tq` offers.

At the top stand the verbs, the config, the classes of quantization-aware training and the results. What a config is built
from, and what is used now and then, stands in six modules: `tq.types`, `tq.scales`, `tq.ranges`, `tq.rounding`, `tq.methods`
and `tq.training`. `truequant/__init__.py` reads here which room a name is loaded from when it is first used.
"""

from truequant import methods, ranges, rounding, scales, training, types
from truequant.analysis import Sensitivity, Verification, assert_exact, replay, search, sensitivity, verify
from truequant.calibration import calibrate
from truequant.checkpoints import Checkpoint, CheckpointManager, load_checkpoint, save_checkpoint
from truequant.errors import TruequantError
from truequant.fake import (
    FakeQuantize,
    FakeQuantizeLayer,
    QATModuleWrapper,
    Statistics,
    codes,
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
from truequant.schemes import Fusions, PerChannel, PerGroup, PerTensor, QConfig, QuantScheme, Rule
from truequant.training import evaluate
from truequant.transform import QATPreparer, convert, prepare, restore_float

__all__ = [
    "ActivationObserver", "Checkpoint", "CheckpointManager", "FakeQuantize", "FakeQuantizeLayer", "Fusions", "Int8Model",
    "MovingAverageStatistics", "PerChannel", "PerGroup", "PerTensor", "Plan", "QATModuleWrapper", "QATPreparer", "QConfig",
    "QuantScheme", "Rule", "Sensitivity", "Statistics", "TruequantError", "Verification", "assert_exact", "calibrate", "codes",
    "compile", "convert", "evaluate", "export_gguf", "export_onnx", "export_program", "export_tflite", "freeze", "lint",
    "load", "load_checkpoint", "methods", "plan", "prepare", "quantizers", "quantizers_off", "ranges", "register_op",
    "replay", "report", "restore_float", "rounding", "save_checkpoint", "scales", "search", "sensitivity", "statistics",
    "training", "types", "unfreeze", "verify",
]  # fmt: skip
