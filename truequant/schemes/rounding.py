"""How codes are rounded in training, and what becomes of codes that oscillate, as values. Evaluation rounds half to even."""

from __future__ import annotations

from dataclasses import dataclass

from truequant.schemes.strategies import check


@dataclass(frozen=True, slots=True)
class Nearest:
    """Round half to even; the gradient passes straight through."""


@dataclass(frozen=True, slots=True)
class Stochastic:
    """`floor(x / s + u)`, u uniform in [0, 1): right on average (Gupta et al. 2015, section 3). In training only."""


@dataclass(frozen=True, slots=True)
class EWGS:
    """Element-wise gradient scaling (Lee, Kim and Ham 2021, "Network Quantization with Element-wise Gradient Scaling"):
    `g_x = g_q * (1 + delta * sign(g_q) * (x - q))` with x and q in units of the whole range.

    delta: 0 is straight through; the paper takes 1e-3 where it is fixed. `tq.methods.update_ewgs` sets it from the curvature
        of the loss.
    """

    delta: float = 1e-3

    def __post_init__(self) -> None:
        check(0 <= self.delta < float("inf"), "EWGS: delta out of range", self.delta, "0 <= delta")


Rounding = Nearest | Stochastic | EWGS


@dataclass(frozen=True, slots=True)
class Freezing:
    """Weights whose codes oscillate are frozen (Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training",
    sections 4.1 and 4.3, algorithm 1).

    A code oscillates when it moves against its last move. Its frequency is an exponential moving average with `momentum`;
    above a threshold, the code stays for good at the rounded average of what it was. The threshold falls along half a cosine
    from `start` to `end` within `steps` steps of training; None holds it at `start`.
    """

    start: float = 0.1
    end: float = 0.01
    steps: int | None = None
    momentum: float = 0.01

    def __post_init__(self) -> None:
        check(0 < self.momentum < 1, "Freezing: momentum out of range", self.momentum, "0 < momentum < 1")
        check(0 < self.end <= self.start, "Freezing: thresholds out of order", (self.start, self.end), "0 < end <= start")
        check(self.steps is None or self.steps > 0, "Freezing: steps is no number of steps", self.steps, "1, 2, … or None")
