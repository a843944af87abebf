"""Questions about a quantized model: is it the one that was validated, what costs accuracy, which widths fit a budget?"""

from truequant.analysis.budgets import Budget, Latency, LayerFacts, MultiplyAccumulates, Size
from truequant.analysis.cases import Case
from truequant.analysis.latency import median_seconds
from truequant.analysis.replay import Replay, replay
from truequant.analysis.report import Difference, Grade, Requirement, RuntimeReport, Verification
from truequant.analysis.search import search
from truequant.analysis.sensitivity import Sensitivity, SiteSensitivity, sensitivity
from truequant.analysis.verify import assert_exact, verify

__all__ = [
    "Budget", "Case", "Difference", "Grade", "Latency", "LayerFacts", "MultiplyAccumulates", "Replay", "Requirement",
    "RuntimeReport", "Sensitivity", "SiteSensitivity", "Size", "Verification", "assert_exact", "median_seconds",
    "replay", "search", "sensitivity", "verify",
]  # fmt: skip
