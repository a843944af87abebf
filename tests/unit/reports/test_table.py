"""The tables that end a run, as text."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from truequant.analysis import RuntimeReport, Verification
from truequant.reports import Stage, stage_table, verification_table


def lines(table: Table, width: int = 100) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [" ".join(line.split()) for line in capture.get().splitlines() if line.strip(" ─")]


def test_a_row_a_stage() -> None:
    stages = [
        Stage("float", 98.95, 323_456, {1: 0.000312, 64: 0.0043}),
        Stage("PTQ", 98.9, None, {1: 0.0004}),
    ]
    assert lines(stage_table(stages, "lenet, w8a8")) == [
        "lenet, w8a8",
        "top-1 file batch 1 batch 64",
        "float 98.95 % 323.5 kB 0.31 ms 4.30 ms",
        "PTQ 98.90 % – 0.40 ms –",
    ]


def test_a_row_a_runtime() -> None:
    table = verification_table(Verification({"onnxruntime": RuntimeReport(1_234_567)}), "verified")
    assert lines(table) == [
        "verified",
        "codes compared different largest difference changed predictions grade",
        "onnxruntime 1,234,567 0 0 0 EXACT",
    ]


def test_a_difference_stands_out() -> None:
    reports = {
        "same": RuntimeReport(9),
        "codes": RuntimeReport(9, codes_different=1, max_difference=1),
        "outputs": RuntimeReport(9, outputs_different=1),
        "more": RuntimeReport(9, codes_different=1, max_difference=2, argmax_changed=1),
    }
    table = verification_table(Verification(reports), "verified")
    assert [row.style for row in table.rows] == ["green", "bold red", "bold red", "bold red"]
    assert lines(table)[-1] == "more 9 1 2 1 DIFFERENT"


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    console = Console(width=80, color_system=None)
    stages = [Stage("QAT, as evaluated", 100.0, 12_345_678, {1: 0.1, 64: 10.0})]
    for table in (stage_table(stages, "t"), verification_table(Verification({"reference": RuntimeReport(10**9)}), "t")):
        with console.capture() as capture:
            console.print(table)
        assert "…" not in capture.get()
