"""How a scale comes about, as values: each is an algorithm whose training lies in a file of `truequant.fake.algorithms`.

A rule states here what all others ask of it (see `Facts`); `ScaleRule` lists the rules, and texts and tables follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, get_args

from truequant.errors import SchemeError
from truequant.schemes.dtypes import IntegerType
from truequant.schemes.strategies import check

__all__ = ["LSQ", "PACT", "TQT", "TWN", "DoReFa", "FloatScale", "LSQPlus", "PowerOfTwoScale"]


class Facts:
    """What a scale rule says of itself: a rule of its own names only what differs from these.

    label: its name in print; in small letters, its name in TOML.
    of_range: the scale is that of the range which is observed, and training is straight through.
    learned: the scale is a parameter; learns_offset: so is the zero point, where the scheme has one.
    power_of_two: the scale is a power of two. zero_point_0: whatever the type, the zero point is 0.
    nearest_codes: the code of a value is the nearest one, so that other roundings and freezing have a meaning.
    any_width: codes of more bits than planned have a meaning too.
    takes_clip: a clip ahead of the quantizer trains in one pass with it.
    not_for_weights: why it is none for weights, as a sentence; "" where it is.
    """

    __slots__ = ()
    label: ClassVar[str]
    of_range: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    learns_offset: ClassVar[bool] = False
    power_of_two: ClassVar[bool] = False
    zero_point_0: ClassVar[bool] = False
    nearest_codes: ClassVar[bool] = True
    any_width: ClassVar[bool] = True
    takes_clip: ClassVar[bool] = False
    not_for_weights: ClassVar[str] = ""

    def check_dtype(self, dtype: IntegerType) -> None:
        """SchemeError for a type that its codes cannot have."""

    def for_activations(self, dtype: IntegerType) -> bool:
        """Whether it is for activations of this type too."""
        return True

    def qmax(self, dtype: IntegerType) -> int:
        """The highest code."""
        return dtype.qmax


@dataclass(frozen=True, slots=True)
class FloatScale(Facts):
    """`scale = range / levels`. On 1-bit weights the mean of |w| (Rastegari et al. 2016, "XNOR-Net", equation 6)."""

    label: ClassVar[str] = "float"
    of_range: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class PowerOfTwoScale(Facts):
    """The smallest power of two that is not below `range / levels`."""

    label: ClassVar[str] = "power-of-two"
    of_range: ClassVar[bool] = True
    power_of_two: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class LSQ(Facts):
    """A learned scale (Esser et al. 2020, "Learned Step Size Quantization", equations 1 to 3).

    `gradient_scale` multiplies the paper's `1 / sqrt(N * qmax)`, N being the weights that share a scale, or the features of
    one sample of an activation.
    """

    label: ClassVar[str] = "LSQ"
    learned: ClassVar[bool] = True
    takes_clip: ClassVar[bool] = True

    gradient_scale: float = 1.0

    def __post_init__(self) -> None:
        check(self.gradient_scale > 0, "LSQ: gradient_scale is not positive", self.gradient_scale, "gradient_scale > 0")


@dataclass(frozen=True, slots=True)
class LSQPlus(Facts):
    """A learned scale, and for affine activations a learned offset (Bhalgat et al. 2020, "LSQ+", equations 3 to 6).

    The offset takes effect as an integer zero point, so that an integer runtime can hold it. A scheme behind a ReLU has zero
    point 0 unless it says `symmetric=False`. Weights start at `max(|mean - 3 std|, |mean + 3 std|) / 2^(bits - 1)`.
    """

    label: ClassVar[str] = "LSQ+"
    learned: ClassVar[bool] = True
    learns_offset: ClassVar[bool] = True
    takes_clip: ClassVar[bool] = True

    gradient_scale: float = 1.0

    def __post_init__(self) -> None:
        check(self.gradient_scale > 0, "LSQPlus: gradient_scale is not positive", self.gradient_scale, "gradient_scale > 0")


@dataclass(frozen=True, slots=True)
class PACT(Facts):
    """A learned clipping level of activations (Choi et al. 2018, "PACT", equations 1 to 3): `scale = alpha / qmax`.

    alpha: where it starts; None takes the range that the observer finds. decay: L2 regularization of alpha, the paper's
    remedy against levels that only grow. The zero point is 0; a signed type clips at `-alpha` too.
    """

    label: ClassVar[str] = "PACT"
    learned: ClassVar[bool] = True
    zero_point_0: ClassVar[bool] = True
    nearest_codes: ClassVar[bool] = False
    not_for_weights: ClassVar[str] = "PACT learns where activations are clipped"

    alpha: float | None = None
    decay: float = 2e-4

    def __post_init__(self) -> None:
        check(self.alpha is None or 0 < self.alpha < 2.0**32, "PACT: alpha is no level", self.alpha, "0 < alpha, or None")
        check(0 <= self.decay < float("inf"), "PACT: decay out of range", self.decay, "0 <= decay")

    def check_dtype(self, dtype: IntegerType) -> None:
        if dtype.bits == 1 and dtype.signed:
            raise SchemeError(
                "QuantScheme: PACT clips activations, and binary weights have no range", fix="LSQ() or FloatScale()"
            )


@dataclass(frozen=True, slots=True)
class TQT(Facts):
    """A learned threshold whose scale is a power of two (Jain et al. 2020, "Trained Quantization Thresholds", equations 4
    to 8): `scale = 2^ceil(log2 t)`.

    normalized: the gradient of `log2 t` is divided by `scale^2 * sqrt(N * qmax)`, which makes it independent of the scale of
    the data, as plain SGD needs; False is the paper's gradient, meant for Adam.
    """

    label: ClassVar[str] = "TQT"
    learned: ClassVar[bool] = True
    power_of_two: ClassVar[bool] = True

    normalized: bool = True


@dataclass(frozen=True, slots=True)
class DoReFa(Facts):
    """Zhou et al. 2016, "DoReFa-Net", equations 8 to 11: weights through tanh on odd codes, activations in [0, 1].

    The paper's k-bit weights `2 q / (2^k - 1) - 1` have no zero. Their codes are `2 q - (2^k - 1)`, odd integers of k + 1
    bits on the scale `1 / (2^k - 1)`: the same values, and zero point 0. So a weight has at most 7 bits.

    keep_magnitude: weights are multiplied by `max |tanh w|` again, so that a trained float model stays one; False is the
    paper's, for models that are trained from scratch with BatchNorm behind every layer.
    reach: where activations are clipped; the paper's 1 by default.
    """

    label: ClassVar[str] = "DoReFa"
    zero_point_0: ClassVar[bool] = True
    nearest_codes: ClassVar[bool] = False

    keep_magnitude: bool = True
    reach: float = 1.0

    def __post_init__(self) -> None:
        check(0 < self.reach < 2.0**32, "DoReFa: reach is no level", self.reach, "0 < reach")

    def check_dtype(self, dtype: IntegerType) -> None:
        if dtype.signed and dtype.bits > 7:
            raise SchemeError(
                "QuantScheme: DoReFa weights are odd codes of one bit more, which int8 must hold",
                got=f"{dtype}, codes up to {2**dtype.bits - 1}", expected="int1 … int7", fix="LSQ() or FloatScale() at 8 bits",
            )  # fmt: skip

    def for_activations(self, dtype: IntegerType) -> bool:
        return not dtype.signed

    def qmax(self, dtype: IntegerType) -> int:
        return (1 << dtype.bits) - 1 if dtype.signed else dtype.qmax


@dataclass(frozen=True, slots=True)
class TWN(Facts):
    """Ternary weights (Li and Liu 2016, "Ternary Weight Networks", equations 3 and 5): type int2, codes -1, 0, +1.

    0 where `|w| <= threshold * mean |w|`; the scale is the mean of |w| over the others.
    """

    label: ClassVar[str] = "TWN"
    zero_point_0: ClassVar[bool] = True
    nearest_codes: ClassVar[bool] = False
    any_width: ClassVar[bool] = False

    threshold: float = 0.7

    def __post_init__(self) -> None:
        check(0 <= self.threshold < 2, "TWN: threshold out of range", self.threshold, "0 <= threshold < 2")

    def check_dtype(self, dtype: IntegerType) -> None:
        if dtype.bits != 2 or not dtype.signed:
            raise SchemeError("QuantScheme: ternary weights are of type int2", got=str(dtype), expected="int2")

    def for_activations(self, dtype: IntegerType) -> bool:
        return False


ScaleRule = FloatScale | PowerOfTwoScale | LSQ | LSQPlus | PACT | TQT | DoReFa | TWN
SCALE_RULES: tuple[type[ScaleRule], ...] = get_args(ScaleRule)


def examples(rules: Iterable[type[ScaleRule]]) -> str:
    """`FloatScale(), LSQ() or TQT()`, as an error says what it expects."""
    *first, last = (f"{rule.__name__}()" for rule in rules)
    return f"{', '.join(first)} or {last}" if first else last
