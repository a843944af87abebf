"""Ranges from data."""

from truequant.observers.activation import ActivationObserver
from truequant.observers.minmax import grouped
from truequant.observers.ranks import several, widest
from truequant.observers.statistics import MovingAverageStatistics
from truequant.observers.weights import weight_range

__all__ = ["ActivationObserver", "MovingAverageStatistics", "grouped", "several", "weight_range", "widest"]
