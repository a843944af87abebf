"""The harness of the benchmarks: fair turns, medians, and figures that are only merged with figures of the same machine."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("harness")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    module.PAGE.write_text("before\n<!-- speed -->\nold\n<!-- end of speed -->\nafter\n")
    return module


def test_contenders_take_turns_and_none_is_always_behind_another(harness: ModuleType) -> None:
    calls: list[str] = []
    timings = harness.interleaved({n: lambda n=n: calls.append(n) for n in "abc"}, seconds=0.0, fewest=40, warmup=0)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 120, 3)]
    assert len(calls) == 120
    assert set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    assert all(t.rounds == 40 and t.low <= t.median <= t.high for t in timings.values())


def _publish(harness: ModuleType, rows: list[dict[str, Any]], folder: Path, threads: int = 2, record: bool = True) -> None:
    given = argparse.Namespace(json=folder / "one.json", record=record, threads=threads)
    columns = {"model": lambda r: r["model"], "ratio": lambda r: harness.ratio(r["ratio"])}
    harness.publish("speed", given, rows, ("model",), columns, "A title")


def test_recorded_rows_are_merged_by_key_on_the_same_machine_only(harness: ModuleType, tmp_path: Path) -> None:
    _publish(harness, [{"model": "a", "ratio": 2.0}, {"model": "b", "ratio": 1.0}], tmp_path)
    _publish(harness, [{"model": "a", "ratio": 1.5}, {"model": "c", "ratio": None}], tmp_path)
    recorded = json.loads((tmp_path / "results" / "speed.json").read_text())
    assert [(r["model"], r["ratio"]) for r in recorded["rows"]] == [("a", 1.5), ("b", 1.0), ("c", None)]
    assert {"name", "cores", "features", "threads"} == set(recorded["machine"])
    page = harness.PAGE.read_text()
    assert "| a | 1.50 |\n| b | 1.00 |\n| c | – |\n" in page
    assert page.startswith("before\n<!-- speed -->\n*A title*\n")
    assert page.endswith("<!-- end of speed -->\nafter\n")
    assert "old" not in page
    _publish(harness, [{"model": "d", "ratio": 1.0}], tmp_path, threads=1)
    assert [r["model"] for r in json.loads((tmp_path / "results" / "speed.json").read_text())["rows"]] == ["d"]


def test_nothing_is_recorded_without_being_asked(harness: ModuleType, tmp_path: Path) -> None:
    _publish(harness, [{"model": "a", "ratio": 2.0}], tmp_path, record=False)
    assert json.loads((tmp_path / "one.json").read_text())["rows"] == [{"model": "a", "ratio": 2.0}]
    assert not (tmp_path / "results").exists()
    assert "old" in harness.PAGE.read_text()


def test_a_page_without_the_section_is_an_error(harness: ModuleType, tmp_path: Path) -> None:
    harness.PAGE.write_text("nothing here\n")
    with pytest.raises(SystemExit, match="needs the lines <!-- speed -->"):
        _publish(harness, [{"model": "a", "ratio": 2.0}], tmp_path)
