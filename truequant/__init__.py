"""truequant: quantization-aware training whose Int8 model is, bit for bit, the model you validated."""

from truequant.calibration import calibrate
from truequant.fake import FakeQuantize, QATModuleWrapper, codes, freeze, quantizers, quantizers_off, unfreeze
from truequant.integer import Int8Model, load
from truequant.observers import ActivationObserver, MovingAverageStatistics
from truequant.planning import Plan, plan
from truequant.schemes import *  # noqa: F403
from truequant.transform import convert, prepare, restore_float
