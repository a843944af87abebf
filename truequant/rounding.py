"""How training rounds, and what gradient passes: `QuantScheme(…, rounding=tq.rounding.Stochastic())`.

Evaluation and the converted model always round to the nearest code, ties to the even one.
"""

from truequant.schemes import EWGS, Freezing, Nearest, Stochastic

__all__ = ["EWGS", "Freezing", "Nearest", "Stochastic"]
