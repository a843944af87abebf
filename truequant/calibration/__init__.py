"""Post-training quantization: ranges from data, equalization, rounding, correction."""

from truequant.calibration.bias_correction import BiasCorrection
from truequant.calibration.calibrate import calibrate
from truequant.calibration.equalization import CrossLayerEqualization, replace_relu6

__all__ = ["BiasCorrection", "CrossLayerEqualization", "calibrate", "replace_relu6"]
