"""Integer types as values: a name, a width and the codes that the type can hold."""

from __future__ import annotations

from dataclasses import dataclass

from truequant.errors import SchemeError, did_you_mean


@dataclass(frozen=True, slots=True)
class IntegerType:
    """Codes `qmin … qmax` of `bits` bits.

    `storage` is the width in which a runtime keeps them: codes of fewer than 8 bits run in 8-bit kernels exactly.
    """

    name: str
    bits: int
    qmin: int
    qmax: int

    @property
    def signed(self) -> bool:
        return self.qmin < 0

    @property
    def storage(self) -> int:
        return 8 if self.bits <= 8 else 16

    def __repr__(self) -> str:
        return self.name


def _signed(bits: int) -> IntegerType:
    return IntegerType(f"int{bits}", bits, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def _unsigned(bits: int) -> IntegerType:
    return IntegerType(f"uint{bits}", bits, 0, (1 << bits) - 1)


int16, int8, int6, int5, int4, int3, int2 = (_signed(bits) for bits in (16, 8, 6, 5, 4, 3, 2))
uint16, uint8, uint7, uint6, uint5, uint4, uint3, uint2, uint1 = (_unsigned(bits) for bits in (16, 8, 7, 6, 5, 4, 3, 2, 1))
int7 = IntegerType("int7", 7, -64, 64)
"""Weights of `[-64, 64]`: pair sums 2 * 255 * 64 fit int16, so that no x86 kernel can saturate."""
int1 = IntegerType("int1", 1, -1, 1)
"""Binary weights: the codes are -1 and +1; 0 is not one of them."""

INTEGER_TYPES: dict[str, IntegerType] = {
    t.name: t
    for t in (
        int16,
        int8,
        int7,
        int6,
        int5,
        int4,
        int3,
        int2,
        int1,
        uint16,
        uint8,
        uint7,
        uint6,
        uint5,
        uint4,
        uint3,
        uint2,
        uint1,
    )
}


def integer_type(name: str) -> IntegerType:
    """The type of a name, for text that comes from files and command lines."""
    if not isinstance(name, str) or name not in INTEGER_TYPES:
        raise SchemeError(
            f"no integer type {str(name)[:200]!r}",
            got=repr(name)[:200], expected=", ".join(INTEGER_TYPES), fix=did_you_mean(str(name)[:200], INTEGER_TYPES),
        )  # fmt: skip
    return INTEGER_TYPES[name]


_FLOATS = ("fp8", "fp6", "fp4", "float8", "float4", "float6", "e4m3", "e5m2", "e2m1", "mxfp", "nvfp", "fp16", "bf16", "float16")


def float_format(given: object) -> str | None:
    """What to take where a format of floats was asked for; None for another name."""
    name = str(given).removeprefix("torch.").lower()
    if not any(part in name for part in _FLOATS):
        return None
    return (
        "truequant has integers alone, whose codes can be compared bit for bit: tq.types.int8, tq.types.int4 …; for FP8, MXFP4 "
        "and NVFP4 take NVIDIA's ModelOpt or torchao"
    )


def instead_of(given: object) -> str | None:
    """What to write where something else was given for a dtype: ours of the same name, or who has formats of floats."""
    name = str(given).removeprefix("torch.").lower()
    return f"tq.types.{name}" if name in INTEGER_TYPES else float_format(given)
