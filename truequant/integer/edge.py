"""`Edge`: what the codes of a named tensor mean, and the check that its numbers are what the arithmetic assumes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from truequant.errors import ConversionError

LOWEST_CODE, HIGHEST_CODE = -(2**15), 2**16 - 1
SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True, slots=True)
class Edge:
    """Codes `qmin … qmax` of values `(q - zero_point) * scale`; `scale` is a float32 number. Signed where `qmin < 0`."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int

    @property
    def signed(self) -> bool:
        return self.qmin < 0

    @property
    def wide(self) -> bool:
        """Whether its codes take more than 8 bits."""
        return self.qmin < -128 or self.qmax > (127 if self.signed else 255)

    @property
    def reach(self) -> int:
        """The largest distance of a code from the zero point."""
        return max(self.qmax - self.zero_point, self.zero_point - self.qmin)

    @property
    def codes(self) -> str:
        """Its codes as errors name them: `0 … 255`."""
        return f"{self.qmin} … {self.qmax}"


def check_edge(name: str, edge: Edge) -> None:
    """ConversionError unless scale, zero point and codes are what the arithmetic assumes of an edge."""
    if not _is_scale(edge.scale):
        raise ConversionError(f"edge '{name}': a scale that cannot be", got=edge.scale, expected="a positive, normal float32")
    if not LOWEST_CODE <= edge.qmin < edge.qmax <= HIGHEST_CODE:
        raise ConversionError(
            f"edge '{name}': impossible codes", got=edge.codes, expected=f"within {LOWEST_CODE} … {HIGHEST_CODE}"
        )
    if not edge.qmin <= edge.zero_point <= edge.qmax:
        raise ConversionError(f"edge '{name}': real 0 has no code", got=f"zero point {edge.zero_point}", expected=edge.codes)


def _is_scale(value: float) -> bool:
    """Whether a Python number is a positive, finite, normal float32."""
    if not (isinstance(value, float) and SMALLEST_NORMAL <= value < 2.0**128):
        return False
    try:
        return bool(struct.unpack("f", struct.pack("f", value))[0] == value)
    except OverflowError:
        return False
