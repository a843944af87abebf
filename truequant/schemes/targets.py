"""What a deployment target computes, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ArithmeticRule = Literal["onnxruntime", "portable", "xnnpack"]
Cpu = Literal["x86", "x86 without FMA", "64-bit Arm"]
"""Kinds of CPUs that onnxruntime's kernels round by; "x86" has FMA."""
Activations = Literal["any", "signed and symmetric", "signed", "unsigned"]


@dataclass(frozen=True, slots=True)
class OpRule:
    """One row of a target's table: what `op` computes on codes of the schemes named, and how it rounds."""

    op: str
    schemes: str
    computes: str
    rounding: str


@dataclass(frozen=True, slots=True)
class Target:
    """Where the Int8 model will run.

    arithmetic: the named rule of add, mul, pooling and tables.
    saturating_pairs: CPUs of this target may sum pairs of u8 x s8 products in int16, so that a layer whose
        static bound exceeds 32767 must ship unsigned weights with zero point 128.
    without_fma, arm64: CPUs of this target may lack FMA, or be 64-bit Arms, so that an add that they would round to other codes
        ships as a table of all pairs.
    activations: the codes that its integer kernels read. activation_bits, weight_bits: the widths that it has;
        integer_bits: the widest activations whose products it sums in integers. It sums wider ones in float32, in an order of
        its own: layers are graded, never EXACT. Adds, tables and norms of wider codes are EXACT.
    per_channel: the ops whose weights may have a scale for each channel, "layer" for all.
    runs_here: whether a runtime of this target can be run and compared here. Where not, plan and export keep its
        constraints, and verification grades it UNVERIFIED.
    norms: whether its runtimes normalize in integers; uneven_averages: whether they average windows of unequal numbers of
        elements by a rule that is known. The plan leaves in float what it has no rule for.
    """

    name: str
    arithmetic: ArithmeticRule
    saturating_pairs: bool
    without_fma: bool = False
    activations: Activations = "any"
    activation_bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 16)
    integer_bits: int = 8
    weight_bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    per_channel: tuple[str, ...] = ("layer",)
    runs_here: bool = True
    arm64: bool = False
    norms: bool = True
    uneven_averages: bool = True

    @property
    def other_cpus(self) -> tuple[Cpu, ...]:
        """Kinds of CPUs beside x86 with FMA that this target has."""
        kinds: dict[Cpu, bool] = {"x86 without FMA": self.without_fma, "64-bit Arm": self.arm64}
        return tuple(kind for kind, there in kinds.items() if there)

    @property
    def rules(self) -> tuple[OpRule, ...]:
        """What its kernels compute, op by op, where that was measured."""
        return RULES[self.arithmetic] if self.runs_here else ()

    def __str__(self) -> str:
        return self.name


_ROUNDED_FIRST = "half to even, then the zero point is added"
_ROUNDED_LAST = "the zero point is added, then half to even"
_ANY_BITS = "u8, s8, u16, s16"
_ONNXRUNTIME_RULES = (
    OpRule("quantize", "float32 to u8, s8", "clamp(rint(x / s) + z)", _ROUNDED_FIRST),
    OpRule("conv, linear", "u8 x s8 or u8, s8 x s8", "clamp(rint(float32(acc) * float32(float32(sx * sw) / sy)) + zy)",
           _ROUNDED_FIRST),
    OpRule("conv, linear to float", "u8 x s8 or u8", "float32(acc) * float32(sx * sw)", "none"),
    OpRule("add", "u8, s8", "C = zy - fma(ra, za, rb * zb); clamp(rint(fma(ra, a, fma(rb, b, C))))", _ROUNDED_LAST),
    OpRule("add, without FMA", "u8, s8", "C = zy - (ra * za + rb * zb); clamp(rint(rb * b + (ra * a + C)))", _ROUNDED_LAST),
    OpRule("add, 64-bit Arm", "u8, s8",
           "A = rint(ra * 2^k), B = rint(rb * 2^k); clamp((A * (a - za) + B * (b - zb)) / 2^k + zy)",
           "half away from zero, then the zero point is added"),
    OpRule("mul", "u8, s8", "clamp(rint(float32(float32(sa * sb) / sy) * ((a - za) * (b - zb)) + zy))", _ROUNDED_LAST),
    OpRule("global average", "u8, s8", "clamp(rint(float32(acc) * float32(sx / float32(sy * n))) + zy)", _ROUNDED_FIRST),
    OpRule("sub", "u8, s8", "a table of all pairs of dequantize, float32 op, quantize", _ROUNDED_FIRST),
    OpRule("table", "u8, s8", "entries[q], computed once in float64", _ROUNDED_FIRST),
    OpRule("data movement", "any", "codes unchanged", "none"),
    OpRule("add, sub, mul", "u16, s16", "dequantize, float32 op, quantize", _ROUNDED_FIRST),
    OpRule("conv, linear, matmul, averages", "u16, s16", "dequantize, float32 sums in its own order, quantize: never EXACT",
           _ROUNDED_FIRST),
    OpRule("layer norm", _ANY_BITS, "R = sqrt(float32(n * S2 - S1 * S1 + t)); clamp(rint((c - m) * (n / R) * G + B) + zy)",
           _ROUNDED_FIRST),
    OpRule("group, instance norm", _ANY_BITS, "a = n / R * G, b = B - m * a; clamp(rint(c * a + b) + zy)", _ROUNDED_FIRST),
    OpRule("RMS, L2 norm", _ANY_BITS, "clamp(rint(c * gamma / (R * float32(sy / sqrt(n)))) + zy)", _ROUNDED_FIRST),
    OpRule("softmax", "u8", "e = T[max - x]; clamp(rint(e / float32(float32(sum(e)) * sy)) + zy)", _ROUNDED_FIRST),
    OpRule("softmax times values", "u8", "w = float32(sum(e)) * float32(so / sv); clamp(rint(float32(acc) / w) + zo)",
           _ROUNDED_FIRST),
)  # fmt: skip

_OF_ONNXRUNTIME = (
    "add", "add, without FMA", "add, 64-bit Arm", "mul", "sub", "add, sub, mul", "conv, linear, matmul, averages",
)  # fmt: skip
_PORTABLE_RULES = (
    *_ONNXRUNTIME_RULES[:3],
    OpRule("add, sub, mul", "any", "dequantize, float32 op, quantize", _ROUNDED_FIRST),
    *(rule for rule in _ONNXRUNTIME_RULES[3:] if rule.op not in _OF_ONNXRUNTIME),
)
_XNNPACK_RULES = (
    _ONNXRUNTIME_RULES[1],
    OpRule("add, sub", "s8",
           "h = 20 - floor(log2(max(ra, rb))), A = rint(ra * 2^h), B = rint(rb * 2^h); "
           "clamp((A * (a - za) +- B * (b - zb)) / 2^h + zy)",
           "half up, then the zero point is added"),
    OpRule("mul", "s8", "clamp(rint(float32(float32(sa * sb) / sy) * ((a - za) * (b - zb))) + zy)", _ROUNDED_FIRST),
    OpRule("global average", "s8", "clamp(rint(float32(acc) * float32(float32(sx * float32(1 / n)) / sy)) + zy)",
           _ROUNDED_FIRST),
    OpRule("table", "s8", "entries[q], computed once in float64", _ROUNDED_FIRST),
    OpRule("data movement", "any", "codes unchanged", "none"),
)  # fmt: skip
RULES: dict[ArithmeticRule, tuple[OpRule, ...]] = {
    "onnxruntime": _ONNXRUNTIME_RULES, "portable": _PORTABLE_RULES, "xnnpack": _XNNPACK_RULES,
}  # fmt: skip
"""What each named rule means, op by op."""

ONNXRUNTIME = Target("onnxruntime", "onnxruntime", saturating_pairs=True)
"""onnxruntime on any x86 CPU with FMA: exact with and without VNNI."""
ONNXRUNTIME_VNNI = Target("onnxruntime-vnni", "onnxruntime", saturating_pairs=False)
"""onnxruntime on CPUs with VNNI only: signed weights always."""
ONNXRUNTIME_SSE = Target("onnxruntime-sse", "onnxruntime", saturating_pairs=True, without_fma=True)
"""onnxruntime on x86 CPUs without FMA too: the few adds that need it become tables."""
ONNXRUNTIME_ARM = Target("onnxruntime-arm64", "onnxruntime", saturating_pairs=True, arm64=True)
"""onnxruntime on x86 CPUs with FMA and on 64-bit Arm, from one file: adds that the two round differently become tables."""
PORTABLE = Target("portable", "portable", saturating_pairs=False)
"""Dequantize, float32 op, quantize: for runtimes whose arithmetic is not known here."""
TENSORRT = Target(
    "tensorrt", "portable", saturating_pairs=False, activations="signed and symmetric", activation_bits=(8,),
    weight_bits=(8,), runs_here=False, norms=False,
)  # fmt: skip
"""TensorRT: signed symmetric activations, one scale a tensor; signed symmetric weights, one scale a channel or a tensor."""
XNNPACK = Target(
    "xnnpack", "xnnpack", saturating_pairs=False, activations="signed", activation_bits=(8,), weight_bits=(8,), norms=False,
    uneven_averages=False,
)  # fmt: skip
"""XNNPACK as LiteRT's delegate on phones and PCs, and ExecuTorch's: signed activations with a zero point; signed symmetric
weights a channel."""
QNN = Target(
    "qnn", "portable", saturating_pairs=False, activations="unsigned", activation_bits=(8, 16), integer_bits=16,
    weight_bits=(8,), per_channel=("conv",), runs_here=False, norms=False,
)  # fmt: skip
"""QNN (Hexagon): unsigned activations of 8 or 16 bits with a zero point; signed symmetric weights, a scale a channel in
convolutions only."""

TARGETS: dict[str, Target] = {
    t.name: t for t in (ONNXRUNTIME, ONNXRUNTIME_VNNI, ONNXRUNTIME_SSE, ONNXRUNTIME_ARM, PORTABLE, TENSORRT, XNNPACK, QNN)
}
