"""Questions about a quantized model: is it the one that was validated?"""

from truequant.analysis.latency import median_seconds
from truequant.analysis.report import Difference, Grade, RuntimeReport, Verification
from truequant.analysis.verify import verify

__all__ = ["Difference", "Grade", "RuntimeReport", "Verification", "median_seconds", "verify"]
