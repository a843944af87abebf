"""What a verification found, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from truequant.analysis.cases import Case
from truequant.runtimes import Machine

Distance = Literal["EXACT", "WITHIN 1", "CLOSE", "DIFFERENT", "UNVERIFIED"]
Grade = Literal["EXACT", "EXACT BETWEEN ISLANDS", "WITHIN 1", "CLOSE", "DIFFERENT", "UNVERIFIED"]
Requirement = Literal["EXACT", "EXACT BETWEEN ISLANDS", "WITHIN 1", "CLOSE"]
REQUIREMENTS: tuple[str, ...] = get_args(Requirement)
CLOSE = 1e-3
"""Of the largest number of an output: how far float sums may lie apart."""


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
    """One runtime against what is expected.

    codes_compared: the sizes of all edges, summed over all images. outputs_different: numbers of the model's outputs
    whose bits differ. argmax_changed: predictions that differ. by_edge: codes that differ, edge by edge, where any does.

    origins: codes that differ although their node read equal codes, by the edge (or the value, for a float output) that the
    node writes: where the differences begin. island_origins: the same for edges that a float island writes, whose sums each
    runtime orders in its own way. codes_behind_islands, outputs_behind_islands: how many of the differences vanish when the
    program goes on from the codes that the runtime's own islands gave.

    float_layers: linear layers of the program that read floats, so that their results are no promise of integers.
    output_error: the largest difference of an output's numbers, as a part of the largest of them.
    float_sums: what sums over codes of 16 bits write, and what else the runtime computes in float32, in its own order; they
    count among the islands.

    metric: the mean of the metric asked for. case: an input that shows the first difference. note: what a grade
    UNVERIFIED means here. promised: whether the runtime's arithmetic is the program's own; another one's is not EXACT, even
    where nothing differed.
    """

    codes_compared: int = 0
    codes_different: int = 0
    max_difference: int = 0
    argmax_changed: int = 0
    outputs_different: int = 0
    first_difference: Difference | None = None
    by_edge: Mapping[str, int] = field(default_factory=dict)
    origins: Mapping[str, int] = field(default_factory=dict)
    island_origins: Mapping[str, int] = field(default_factory=dict)
    codes_behind_islands: int = 0
    outputs_behind_islands: int = 0
    float_layers: int = 0
    output_error: float = 0.0
    metric: float | None = None
    case: Case | None = None
    note: str = ""
    float_sums: tuple[str, ...] = ()
    promised: bool = True

    @property
    def grade(self) -> Grade:
        """EXACT: not one code and not one bit of an output differs. EXACT BETWEEN ISLANDS: what differs, or would with other
        inputs, comes from float islands and sums alone. Else `distance`.
        """
        if self.distance in ("WITHIN 1", "DIFFERENT") and self.exact_between_islands:
            return "EXACT BETWEEN ISLANDS"
        return self.distance

    @property
    def distance(self) -> Distance:
        """How far codes and outputs lie apart, whatever the cause. WITHIN 1: codes differ by one at most, or none did but some
        are sums in float.

        DIFFERENT: by more, or an output differs that no code and no float island accounts for. UNVERIFIED: nothing ran.
        A program with linear layers that read floats is never EXACT: CLOSE where codes differ by one at most and outputs by a
        thousandth of the largest number, even where nothing differs here.
        """
        if self.float_layers:
            return "CLOSE" if self.max_difference <= 1 and self.output_error <= CLOSE else "DIFFERENT"
        if self.codes_compared == 0:
            return "UNVERIFIED"
        if self.codes_different == 0 and self.outputs_different == 0:
            return "EXACT" if self.promised and not self.float_sums else "WITHIN 1"
        accounted = self.codes_different > 0 or self.outputs_different == self.outputs_behind_islands
        return "WITHIN 1" if self.max_difference <= 1 and accounted else "DIFFERENT"

    @property
    def exact_between_islands(self) -> bool:
        """Whether every integer computed from equal codes is equal: what differs comes from float islands alone."""
        return (
            self.codes_compared > 0
            and not self.float_layers
            and self.promised
            and not self.origins
            and self.codes_different == self.codes_behind_islands
            and self.outputs_different == self.outputs_behind_islands
        )

    def meets(self, requirement: Requirement) -> bool:
        """Whether what differs is no more than what is required allows. Islands excuse no distance."""
        if requirement == "EXACT BETWEEN ISLANDS":
            return self.exact_between_islands
        least = ("EXACT", "WITHIN 1", "CLOSE")
        return self.distance in least[: least.index(requirement) + 1]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("case", "first_difference")}
        plain |= {name: dict(value) for name, value in plain.items() if isinstance(value, Mapping)}
        plain["float_sums"] = list(self.float_sums)
        first = None if self.first_difference is None else asdict(self.first_difference)
        return plain | {
            "first_difference": first,
            "grade": self.grade,
            "exact_between_islands": self.exact_between_islands,
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """All runtimes together, and each alone in `runtimes`.

    expected: whose codes were expected, "evaluated model" or "reference program", and their metric. promise: what each
    runtime's file promises on machines of other kinds, a sentence each. program: the program's digest. clipped_inputs: the
    share of each quantized input's values that lie outside its range; remarks: a sentence for each where it passes a tenth.
    """

    runtimes: Mapping[str, RuntimeReport]
    expected: str = "evaluated model"
    batches: int = 0
    examples: int = 0
    metric: float | None = None
    program: str = ""
    machine: Machine | None = None
    promise: tuple[str, ...] = ()
    clipped_inputs: Mapping[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def codes_compared(self) -> int:
        return sum(r.codes_compared for r in self.runtimes.values())

    @property
    def codes_different(self) -> int:
        return sum(r.codes_different for r in self.runtimes.values())

    @property
    def codes_behind_islands(self) -> int:
        return sum(r.codes_behind_islands for r in self.runtimes.values())

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
        """Plain numbers and strings, for JSON: by runtime, and what was compared under "verification"."""
        about = {
            "expected": self.expected, "batches": self.batches, "examples": self.examples, "metric": self.metric,
            "program": self.program, "machine": None if self.machine is None else asdict(self.machine),
            "promise": list(self.promise), "clipped_inputs": dict(self.clipped_inputs),
        }  # fmt: skip
        return {name: r.to_dict() for name, r in self.runtimes.items()} | {"verification": about}

    def __str__(self) -> str:
        return "\n".join([*_table(self), *_remarks(self)])


def _table(verification: Verification) -> list[str]:
    reports = verification.runtimes
    islands = any(r.codes_behind_islands or r.outputs_behind_islands for r in reports.values())
    measured = any(r.metric is not None for r in reports.values())
    floats = any(r.float_layers for r in reports.values())
    heading = ["runtime", "grade", "codes compared", "different", *(["behind islands"] if islands else [])]
    heading += ["largest", *(["output error"] if floats else []), "predictions changed"]
    rows = [[*heading, *(["metric", "expected"] if measured else [])]]
    for name, r in reports.items():
        row = [name, r.grade, f"{r.codes_compared:,}", f"{r.codes_different:,}"]
        row += [f"{r.codes_behind_islands:,}"] if islands else []
        row += [str(r.max_difference), *([f"{r.output_error:.1e}"] if floats else []), str(r.argmax_changed)]
        row += [_number(r.metric), _number(verification.metric)] if measured else []
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _remarks(verification: Verification) -> list[str]:
    lines = list(verification.remarks)
    if verification.first_difference is not None:
        lines.append(f"first difference: {verification.first_difference}")
    for name, r in verification.runtimes.items():
        if r.note:
            lines.append(f"{name}: {r.note}")
        if r.float_layers:
            lines.append(f"{name}: {r.float_layers} linear layers read floats, so that EXACT cannot be promised")
        if r.float_sums:
            lines.append(f"{name}: never EXACT, since it computes in float32, in its own order, at {_named(r.float_sums)}")
        if r.origins:
            lines.append(f"{name}: differs although it read equal codes at {_counts(r.origins)}")
        if r.island_origins:
            lines.append(f"{name}: float islands and sums give other codes at {_counts(r.island_origins)}")
    if verification.machine is not None:
        lines.append(f"machine: {verification.machine}")
    return [*lines, *verification.promise]


def _counts(by_edge: Mapping[str, int]) -> str:
    shown = [f"'{edge}' ({count:,})" for edge, count in list(by_edge.items())[:4]]
    return ", ".join([*shown, *([f"{len(by_edge) - 4} more"] if len(by_edge) > 4 else [])])


def _named(names: tuple[str, ...]) -> str:
    return ", ".join([*(f"'{n}'" for n in names[:4]), *([f"{len(names) - 4} more"] if len(names) > 4 else [])])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"
