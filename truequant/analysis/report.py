"""What a verification found, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Grade = Literal["EXACT", "WITHIN 1", "DIFFERENT"]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first code that differs: in edge order of the first batch that shows one.

    batch: which batch; position: index in the edge's tensor, the image first.
    """

    edge: str
    batch: int
    position: tuple[int, ...]
    expected: int
    got: int

    def __str__(self) -> str:
        return f"edge '{self.edge}', batch {self.batch}, position {self.position}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """One runtime against the evaluated model.

    codes_compared: the sizes of all edges, summed over all images. outputs_different: numbers of the model's float outputs
    whose bits differ. argmax_changed: predictions that differ. by_edge: codes that differ, edge by edge, where any does.
    """

    codes_compared: int = 0
    codes_different: int = 0
    max_difference: int = 0
    argmax_changed: int = 0
    outputs_different: int = 0
    first_difference: Difference | None = None
    by_edge: Mapping[str, int] = field(default_factory=dict)

    @property
    def grade(self) -> Grade:
        """EXACT: not one code and not one bit of an output differs."""
        if self.codes_different == 0 and self.outputs_different == 0:
            return "EXACT"
        return "WITHIN 1" if self.max_difference <= 1 else "DIFFERENT"


@dataclass(frozen=True, slots=True)
class Verification:
    """All runtimes together, and each alone in `runtimes`."""

    runtimes: Mapping[str, RuntimeReport]

    @property
    def codes_compared(self) -> int:
        return sum(r.codes_compared for r in self.runtimes.values())

    @property
    def codes_different(self) -> int:
        return sum(r.codes_different for r in self.runtimes.values())

    @property
    def max_difference(self) -> int:
        return max((r.max_difference for r in self.runtimes.values()), default=0)

    @property
    def argmax_changed(self) -> int:
        return sum(r.argmax_changed for r in self.runtimes.values())

    @property
    def outputs_different(self) -> int:
        return sum(r.outputs_different for r in self.runtimes.values())

    @property
    def first_difference(self) -> Difference | None:
        return next((r.first_difference for r in self.runtimes.values() if r.first_difference is not None), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {name: asdict(r) | {"grade": r.grade} for name, r in self.runtimes.items()}

    def __str__(self) -> str:
        rows = [("runtime", "grade", "codes compared", "different", "largest", "predictions changed")]
        for name, r in self.runtimes.items():
            counts = (f"{r.codes_compared:,}", f"{r.codes_different:,}", str(r.max_difference), str(r.argmax_changed))
            rows.append((name, r.grade, *counts))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if self.first_difference is not None:
            lines.append(f"first difference: {self.first_difference}")
        return "\n".join(lines)
