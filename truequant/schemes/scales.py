"""How a scale comes about, as values: each is an algorithm whose training lies in a file of `truequant.fake.algorithms`."""

from __future__ import annotations

from dataclasses import dataclass

from truequant.schemes.strategies import check


@dataclass(frozen=True, slots=True)
class FloatScale:
    """`scale = range / levels`. On 1-bit weights the mean of |w| (Rastegari et al. 2016, "XNOR-Net", equation 6)."""


@dataclass(frozen=True, slots=True)
class PowerOfTwoScale:
    """The smallest power of two that is not below `range / levels`."""


@dataclass(frozen=True, slots=True)
class LSQ:
    """A learned scale (Esser et al. 2020, "Learned Step Size Quantization", equations 1 to 3).

    `gradient_scale` multiplies the paper's `1 / sqrt(N * qmax)`, N being the weights that share a scale, or the features of
    one sample of an activation.
    """

    gradient_scale: float = 1.0

    def __post_init__(self) -> None:
        check(self.gradient_scale > 0, "LSQ: gradient_scale is not positive", self.gradient_scale, "gradient_scale > 0")


@dataclass(frozen=True, slots=True)
class LSQPlus:
    """A learned scale, and for affine activations a learned offset (Bhalgat et al. 2020, "LSQ+", equations 3 to 6).

    The offset takes effect as an integer zero point, so that an integer runtime can hold it. A scheme behind a ReLU has zero
    point 0 unless it says `symmetric=False`. Weights start at `max(|mean - 3 std|, |mean + 3 std|) / 2^(bits - 1)`.
    """

    gradient_scale: float = 1.0

    def __post_init__(self) -> None:
        check(self.gradient_scale > 0, "LSQPlus: gradient_scale is not positive", self.gradient_scale, "gradient_scale > 0")


@dataclass(frozen=True, slots=True)
class PACT:
    """A learned clipping level of activations (Choi et al. 2018, "PACT", equations 1 to 3): `scale = alpha / qmax`.

    alpha: where it starts; None takes the range that the observer finds. decay: L2 regularization of alpha, the paper's
    remedy against levels that only grow. The zero point is 0; a signed type clips at `-alpha` too.
    """

    alpha: float | None = None
    decay: float = 2e-4

    def __post_init__(self) -> None:
        check(self.alpha is None or 0 < self.alpha < 2.0**32, "PACT: alpha is no level", self.alpha, "0 < alpha, or None")
        check(0 <= self.decay < float("inf"), "PACT: decay out of range", self.decay, "0 <= decay")


@dataclass(frozen=True, slots=True)
class TQT:
    """A learned threshold whose scale is a power of two (Jain et al. 2020, "Trained Quantization Thresholds", equations 4
    to 8): `scale = 2^ceil(log2 t)`.

    normalized: the gradient of `log2 t` is divided by `scale^2 * sqrt(N * qmax)`, which makes it independent of the scale of
    the data, as plain SGD needs; False is the paper's gradient, meant for Adam.
    """

    normalized: bool = True


@dataclass(frozen=True, slots=True)
class DoReFa:
    """Zhou et al. 2016, "DoReFa-Net", equations 8 to 11: weights through tanh on odd codes, activations in [0, 1].

    The paper's k-bit weights `2 q / (2^k - 1) - 1` have no zero. Their codes are `2 q - (2^k - 1)`, odd integers of k + 1
    bits on the scale `1 / (2^k - 1)`: the same values, and zero point 0. So a weight has at most 7 bits.

    keep_magnitude: weights are multiplied by `max |tanh w|` again, so that a trained float model stays one; False is the
    paper's, for models that are trained from scratch with BatchNorm behind every layer.
    reach: where activations are clipped; the paper's 1 by default.
    """

    keep_magnitude: bool = True
    reach: float = 1.0

    def __post_init__(self) -> None:
        check(0 < self.reach < 2.0**32, "DoReFa: reach is no level", self.reach, "0 < reach")


@dataclass(frozen=True, slots=True)
class TWN:
    """Ternary weights (Li and Liu 2016, "Ternary Weight Networks", equations 3 and 5): type int2, codes -1, 0, +1.

    0 where `|w| <= threshold * mean |w|`; the scale is the mean of |w| over the others.
    """

    threshold: float = 0.7

    def __post_init__(self) -> None:
        check(0 <= self.threshold < 2, "TWN: threshold out of range", self.threshold, "0 <= threshold < 2")


ScaleRule = FloatScale | PowerOfTwoScale | LSQ | LSQPlus | PACT | TQT | DoReFa | TWN
