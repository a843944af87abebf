"""Ranges from data."""

from truequant.observers.activation import ActivationObserver
from truequant.observers.minmax import grouped
from truequant.observers.precision import Float32State
from truequant.observers.ranks import greatest, is_sharded, of_this_rank, several, total, whole, widest
from truequant.observers.statistics import MovingAverageStatistics
from truequant.observers.weights import weight_range

__all__ = [
    "ActivationObserver", "Float32State", "MovingAverageStatistics", "greatest", "grouped", "is_sharded", "of_this_rank",
    "several", "total", "weight_range", "whole", "widest",
]  # fmt: skip
