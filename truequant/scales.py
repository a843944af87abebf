"""What a scale may be, and whether training learns it: `QuantScheme(…, scale=tq.scales.LSQ())`."""

from truequant.schemes import LSQ, PACT, TQT, TWN, DoReFa, FloatScale, LSQPlus, PowerOfTwoScale

__all__ = ["LSQ", "PACT", "TQT", "TWN", "DoReFa", "FloatScale", "LSQPlus", "PowerOfTwoScale"]
