"""Post-training quantization: ranges from data."""

from truequant.calibration.calibrate import calibrate

__all__ = ["calibrate"]
