"""`QuantScheme`: how one tensor becomes integers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from truequant.errors import SchemeError
from truequant.schemes.dtypes import IntegerType, instead_of
from truequant.schemes.granularity import Granularity, PerChannel, PerGroup, PerTensor
from truequant.schemes.rounding import Freezing, Nearest, Rounding
from truequant.schemes.scales import SCALE_RULES, FloatScale, ScaleRule, examples
from truequant.schemes.strategies import MinMax, MovingAverage, Observation

Gradient = Literal["clipped", "identity"]
ScaleType = Literal["float32", "float16", "bfloat16"]
"""What a file keeps a scale in."""


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """One tensor's quantization: type, granularity, symmetry, how its range is found, how its scale is formed and trained.

    symmetric: zero point 0. Left out, signed types are symmetric and unsigned ones have a zero point.
    observer: left out, `MovingAverage()`; weights read their range from the weights themselves, where
        `MovingAverage` and `MinMax` mean the same.
    gradient: "clipped" passes the upstream gradient where the code was not clipped and zero elsewhere;
        "identity" passes it everywhere. Scale rules that are learned have gradients of their own.
    scale: an algorithm as a value: `LSQ()`, `PACT()`, `TQT()` …; rounding: how codes are rounded in training.
    oscillation: what becomes of a weight whose code moves to and fro; None lets it move.
    scale_dtype: the type in which a file keeps the scales of a weight. Scales are rounded to it, half to even, in training,
        gradient straight through, and everywhere else: what is trained is what the file holds.
    full_range: a signed, symmetric weight takes the lowest code of its type too, as GGUF's Q4_0 does: -8 … 7 of int4.

    Raises `SchemeError` for a combination that no integer runtime can hold or that is not defined.

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
    rounding: Rounding = Nearest()
    oscillation: Freezing | None = None
    scale_dtype: ScaleType = "float32"
    full_range: bool = False

    def __post_init__(self) -> None:
        for field, value, kind in (
            ("dtype", self.dtype, IntegerType),
            ("granularity", self.granularity, (PerTensor, PerChannel, PerGroup)),
            ("observer", self.observer, Observation),
            ("scale", self.scale, ScaleRule),
            ("rounding", self.rounding, Rounding),
            ("oscillation", self.oscillation, (Freezing, type(None))),
        ):
            if not isinstance(value, kind):
                fix = instead_of(value) if field == "dtype" else None
                raise SchemeError(f"QuantScheme: {field} of a wrong kind", got=repr(value), fix=fix or _EXAMPLES[field])
        if self.gradient not in ("clipped", "identity"):
            raise SchemeError("QuantScheme: unknown gradient", got=repr(self.gradient), expected="'clipped' or 'identity'")
        if self.scale_dtype not in get_args(ScaleType):
            raise SchemeError(
                "QuantScheme: unknown scale_dtype",
                got=repr(self.scale_dtype),
                expected=", ".join(map(repr, get_args(ScaleType))),
            )
        if self.symmetric is False and self.dtype.bits == 1 and self.dtype.signed:
            raise SchemeError("QuantScheme: binary codes -1 and +1 have no zero point", fix="symmetric=True, or uint1")
        self._check_algorithm()

    def _check_algorithm(self) -> None:
        rule, bits, binary = self.scale, self.dtype.bits, self.dtype.bits == 1 and self.dtype.signed
        name = type(rule).__name__
        if rule.zero_point_0 and self.symmetric is False:
            raise SchemeError(f"QuantScheme: {name} has zero point 0", got="symmetric=False", fix="leave symmetric out")
        rule.check_dtype(self.dtype)
        if self.full_range not in (False, True) or (
            self.full_range and (bits == 1 or not self.dtype.signed or not self.is_symmetric or not rule.nearest_codes)
        ):
            raise SchemeError(
                "QuantScheme: full_range is for signed, symmetric codes that are the nearest ones",
                got=f"full_range={self.full_range!r}, {self.dtype}, {'symmetric' if self.is_symmetric else 'affine'}, {name}",
                expected="True or False; True with a signed type of 2 bits or more, symmetric",
            )
        if self.oscillation is not None and (bits == 1 or not self.dtype.signed or not rule.nearest_codes):
            raise SchemeError(
                "QuantScheme: freezing is for weights whose codes are the nearest ones",
                got=f"{self.dtype}, {name}", expected="a signed type of 2 bits or more; FloatScale(), LSQ(), LSQPlus(), TQT()",
            )  # fmt: skip
        if not isinstance(self.rounding, Nearest) and (binary or not rule.nearest_codes):
            raise SchemeError(
                f"QuantScheme: {type(self.rounding).__name__} rounding has no meaning here",
                got="binary codes" if binary else name,
                expected=f"{examples(r for r in SCALE_RULES if r.nearest_codes)}, 2 bits and more",
            )

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero point is 0."""
        if self.symmetric is None:
            return self.dtype.signed or self.scale.zero_point_0
        return self.symmetric

    @property
    def qmin(self) -> int:
        """Lowest code: symmetric signed types are narrow, so that negation never leaves the range, unless `full_range`."""
        narrow = self.dtype.signed and self.is_symmetric and not self.full_range
        return -self.qmax if narrow else self.dtype.qmin

    @property
    def qmax(self) -> int:
        """Highest code. DoReFa's weights have odd codes of one bit more."""
        return self.scale.qmax(self.dtype)

    @property
    def learned(self) -> bool:
        """Whether the scale is a parameter."""
        return self.scale.learned

    @property
    def learns_offset(self) -> bool:
        """Whether the zero point is a parameter."""
        return self.scale.learns_offset and not self.is_symmetric

    @property
    def power_of_two(self) -> bool:
        """Whether the scale is a power of two."""
        return self.scale.power_of_two

    @property
    def of_file(self) -> bool:
        """Whether its grid is that of a file's format, with other scales than float32 or the full range of codes."""
        return self.full_range or self.scale_dtype != "float32"

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
        if self.full_range:
            parts.append("full range")
        if self.scale_dtype != "float32":
            parts.append(f"{self.scale_dtype} scales")
        if self.power_of_two:
            parts.append("2^k")
        if not self.scale.of_range:
            parts.append(self.scale.label)
        if not isinstance(self.rounding, Nearest):
            parts.append(type(self.rounding).__name__)
        if self.oscillation is not None:
            parts.append("freezing")
        if not isinstance(self.observer, (MovingAverage, MinMax)):
            parts.append(type(self.observer).__name__.lower())
        return " ".join(parts)


_EXAMPLES = {
    "dtype": "QuantScheme(truequant.types.int8)",
    "granularity": "PerTensor(), PerChannel(0) or PerGroup(32)",
    "observer": "MinMax(), MovingAverage(), Histogram(), Percentile(), MSE() or Entropy()",
    "scale": examples(SCALE_RULES),
    "rounding": "Nearest(), Stochastic() or EWGS()",
    "oscillation": "Freezing() or None",
}
