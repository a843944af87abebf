"""Questions about a quantized model: is it the one that was validated?"""

from truequant.analysis.cases import Case
from truequant.analysis.latency import median_seconds
from truequant.analysis.replay import Replay, replay
from truequant.analysis.report import Difference, Grade, Requirement, RuntimeReport, Verification
from truequant.analysis.verify import assert_exact, verify

__all__ = [
    "Case", "Difference", "Grade", "Replay", "Requirement", "RuntimeReport", "Verification", "assert_exact",
    "median_seconds", "replay", "verify",
]  # fmt: skip
