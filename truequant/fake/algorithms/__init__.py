"""The registry: what each scale rule and each rounding does in training. One file an algorithm."""

from __future__ import annotations

from truequant.fake.algorithms import dorefa, lsq, lsq_plus, pact, rounding, tqt, twn
from truequant.fake.algorithms.algorithm import Algorithm, Fake, stored_scale
from truequant.schemes import (
    LSQ,
    PACT,
    TQT,
    TWN,
    DoReFa,
    FloatScale,
    LSQPlus,
    Nearest,
    PowerOfTwoScale,
    QuantScheme,
    ScaleRule,
)

PLAIN = Algorithm()
ALGORITHMS: dict[type[ScaleRule], Algorithm] = {
    FloatScale: PLAIN, PowerOfTwoScale: PLAIN, LSQ: lsq.ALGORITHM, LSQPlus: lsq_plus.ALGORITHM, PACT: pact.ALGORITHM,
    TQT: tqt.ALGORITHM, DoReFa: dorefa.ALGORITHM, TWN: twn.ALGORITHM,
}  # fmt: skip


def algorithm_of(scheme: QuantScheme) -> Algorithm:
    """The algorithm of a scheme's scale rule."""
    return ALGORITHMS[type(scheme.scale)]


def fake_of(scheme: QuantScheme, training: bool) -> Fake:
    """How values of a scheme are fake-quantized: evaluation rounds to the nearest whatever training does."""
    if training and not isinstance(scheme.rounding, Nearest):
        return rounding.fake
    return algorithm_of(scheme).fake


__all__ = ["ALGORITHMS", "Algorithm", "algorithm_of", "fake_of", "stored_scale"]
