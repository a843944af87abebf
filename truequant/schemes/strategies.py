"""How a range is observed, as values."""

from __future__ import annotations

from dataclasses import dataclass

from truequant.errors import SchemeError


def check(condition: bool, what: str, got: object, expected: str) -> None:
    """SchemeError unless `condition` holds."""
    if not condition:
        raise SchemeError(what, got=repr(got), expected=expected)


@dataclass(frozen=True, slots=True)
class MinMax:
    """The smallest and largest value ever seen."""


@dataclass(frozen=True, slots=True)
class MovingAverage:
    """`m <- momentum * m + (1 - momentum) * x` of each step's smallest and largest value; the first step is copied."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        check(0.0 <= self.momentum <= 1.0, "MovingAverage: momentum out of range", self.momentum, "0 <= momentum <= 1")


@dataclass(frozen=True, slots=True)
class Histogram:
    """The range whose quantization of the histogram has the least expected squared error inside its bins."""

    bins: int = 2048

    def __post_init__(self) -> None:
        check(16 <= self.bins <= 65536, "Histogram: bins out of range", self.bins, "16 <= bins <= 65536")


@dataclass(frozen=True, slots=True)
class Percentile:
    """The range that holds `percent` percent of the values, the rest cut evenly from both tails (one tail when one-sided)."""

    percent: float = 99.99
    bins: int = 2048

    def __post_init__(self) -> None:
        check(0.0 < self.percent <= 100.0, "Percentile: percent out of range", self.percent, "0 < percent <= 100")
        check(16 <= self.bins <= 65536, "Percentile: bins out of range", self.bins, "16 <= bins <= 65536")


@dataclass(frozen=True, slots=True)
class MSE:
    """The range with the least squared quantization error over the histogram's bin centres."""

    bins: int = 2048
    candidates: int = 100

    def __post_init__(self) -> None:
        check(16 <= self.bins <= 65536, "MSE: bins out of range", self.bins, "16 <= bins <= 65536")
        check(2 <= self.candidates <= 10000, "MSE: candidates out of range", self.candidates, "2 <= candidates <= 10000")


@dataclass(frozen=True, slots=True)
class Entropy:
    """The range whose quantized histogram has the least Kullback-Leibler divergence from the original."""

    bins: int = 2048

    def __post_init__(self) -> None:
        check(256 <= self.bins <= 65536, "Entropy: bins out of range", self.bins, "256 <= bins <= 65536")


@dataclass(frozen=True, slots=True)
class Dynamic:
    """Nothing is observed: at run time each token has a scale of its own, `max |x| / qmax` over the last axis.

    For the activations that linear layers read, of a signed, symmetric type: `QuantScheme(int8, observer=Dynamic())`.
    """


Observation = MinMax | MovingAverage | Histogram | Percentile | MSE | Entropy | Dynamic
