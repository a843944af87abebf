"""How the range of the values is found from which a quantizer's scale follows: `QuantScheme(…, observer=tq.ranges.MSE())`."""

from truequant.schemes import MSE, Dynamic, Entropy, Histogram, MinMax, MovingAverage, Percentile

__all__ = ["MSE", "Dynamic", "Entropy", "Histogram", "MinMax", "MovingAverage", "Percentile"]
