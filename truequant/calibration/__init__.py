"""Post-training quantization: ranges from data, equalization, rounding, correction."""

from truequant.calibration.adaround import AdaRound
from truequant.calibration.bias_correction import BiasCorrection
from truequant.calibration.calibrate import calibrate
from truequant.calibration.equalization import CrossLayerEqualization, replace_relu6
from truequant.calibration.ewgs import update_ewgs
from truequant.calibration.gptq import GPTQ
from truequant.calibration.progress import Bars, progress_bars
from truequant.calibration.reconstruction import BlockReconstruction
from truequant.calibration.simulation import quantizing, simulated
from truequant.calibration.smoothquant import SmoothQuant

__all__ = [
    "GPTQ", "AdaRound", "Bars", "BiasCorrection", "BlockReconstruction", "CrossLayerEqualization", "SmoothQuant", "calibrate",
    "progress_bars", "quantizing", "replace_relu6", "simulated", "update_ewgs",
]  # fmt: skip
