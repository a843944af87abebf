"""The two tables at the end of a run: what each stage of the model is worth, and whether anything changed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from truequant.analysis import Verification

if TYPE_CHECKING:  # tables alone need rich, and importing truequant imports what a page needs
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Stage:
    """One form of the model. top1: percent, None where it has no meaning; size: bytes of its file, None without one; latency:
    seconds by batch size.
    """

    name: str
    top1: float | None
    size: int | None
    latency: dict[int, float]


def stage_table(stages: Sequence[Stage], title: str) -> Table:
    """A row a stage: top-1, size of the file, latency for each batch size measured."""
    table = _table(title)
    table.add_column("", no_wrap=True)
    for heading in ("top-1", "file", *(f"batch {batch}" for batch in _batches(stages))):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in stages:
        latencies = (_milliseconds(stage.latency.get(batch)) for batch in _batches(stages))
        table.add_row(stage.name, "–" if stage.top1 is None else f"{stage.top1:.2f} %", _kilobytes(stage.size), *latencies)
    return table


def verification_table(verification: Verification, title: str) -> Table:
    """A row a runtime: codes compared, different, largest difference, changed predictions, grade."""
    table = _table(title)
    table.add_column("", no_wrap=True)
    for heading in ("codes compared", "different", "largest difference", "changed predictions"):
        table.add_column(heading, justify="right")
    table.add_column("grade")
    for name, report in verification.runtimes.items():
        counts = (report.codes_compared, report.codes_different, report.max_difference, report.argmax_changed)
        style = "green" if report.grade in ("EXACT", "EXACT BETWEEN ISLANDS") else "bold red"
        table.add_row(name, *(f"{count:,}" for count in counts), report.grade, style=style)
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _batches(stages: Sequence[Stage]) -> list[int]:
    return sorted({batch for stage in stages for batch in stage.latency})


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.2f} ms"


def _kilobytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1000:,.1f} kB"
