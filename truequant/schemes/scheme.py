"""`QuantScheme`: how one tensor becomes integers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from truequant.errors import SchemeError
from truequant.schemes.dtypes import IntegerType
from truequant.schemes.granularity import Granularity, PerChannel, PerGroup, PerTensor
from truequant.schemes.strategies import LSQ, FloatScale, MinMax, MovingAverage, Observation, PowerOfTwoScale, ScaleRule

Gradient = Literal["clipped", "identity"]


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """One tensor's quantization: type, granularity, symmetry, how its range is found, how its scale is formed.

    symmetric: zero point 0. Left out, signed types are symmetric and unsigned ones have a zero point.
    observer: left out, `MovingAverage()`; weights read their range from the weights themselves, where
        `MovingAverage` and `MinMax` mean the same.
    gradient: "clipped" passes the upstream gradient where the code was not clipped and zero elsewhere;
        "identity" passes it everywhere.

    >>> from truequant.schemes import int4, PerChannel
    >>> QuantScheme(int4, PerChannel(0)).qmin
    -7
    """

    dtype: IntegerType
    granularity: Granularity = PerTensor()
    symmetric: bool | None = None
    observer: Observation = MovingAverage()
    scale: ScaleRule = FloatScale()
    gradient: Gradient = "clipped"

    def __post_init__(self) -> None:
        for field, value, kind in (
            ("dtype", self.dtype, IntegerType),
            ("granularity", self.granularity, (PerTensor, PerChannel, PerGroup)),
            ("observer", self.observer, Observation),
            ("scale", self.scale, ScaleRule),
        ):
            if not isinstance(value, kind):
                raise SchemeError(f"QuantScheme: {field} of a wrong kind", got=repr(value), fix=_EXAMPLES[field])
        if self.gradient not in ("clipped", "identity"):
            raise SchemeError("QuantScheme: unknown gradient", got=repr(self.gradient), expected="'clipped' or 'identity'")
        if self.symmetric is False and self.dtype.bits == 1 and self.dtype.signed:
            raise SchemeError("QuantScheme: binary codes -1 and +1 have no zero point", fix="symmetric=True, or uint1")

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero point is 0."""
        return self.dtype.signed if self.symmetric is None else self.symmetric

    @property
    def qmin(self) -> int:
        """Lowest code: symmetric signed types are narrow, so that negation never leaves the range."""
        return -self.qmax if self.dtype.signed and self.is_symmetric else self.dtype.qmin

    @property
    def qmax(self) -> int:
        """Highest code."""
        return self.dtype.qmax

    @property
    def learned(self) -> bool:
        """Whether the scale is a parameter."""
        return isinstance(self.scale, LSQ)

    @property
    def power_of_two(self) -> bool:
        return isinstance(self.scale, PowerOfTwoScale)

    def with_(self, **changes: object) -> QuantScheme:
        """A copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = [self.dtype.name]
        match self.granularity:
            case PerChannel(axis):
                parts.append(f"channel {axis}")
            case PerGroup(size):
                parts.append(f"group {size}")
            case PerTensor():
                pass
        if self.is_symmetric != self.dtype.signed:
            parts.append("symmetric" if self.is_symmetric else "affine")
        if self.power_of_two:
            parts.append("2^k")
        if self.learned:
            parts.append("learned")
        if not isinstance(self.observer, (MovingAverage, MinMax)):
            parts.append(type(self.observer).__name__.lower())
        return " ".join(parts)


_EXAMPLES = {
    "dtype": "QuantScheme(truequant.int8)",
    "granularity": "PerTensor(), PerChannel(0) or PerGroup(32)",
    "observer": "MinMax(), MovingAverage(), Histogram(), Percentile(), MSE() or Entropy()",
    "scale": "FloatScale(), PowerOfTwoScale() or LSQ()",
}
