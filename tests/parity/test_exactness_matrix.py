"""The short form of benchmarks/exactness.py, whose long form makes docs/exactness.md."""

from __future__ import annotations

import pytest

from tests.scripts import script

MATRIX = script("exactness")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the models' own
@pytest.mark.parametrize(
    ("name", "preset"), [("RepVGG", "w8a8"), ("YOLO", "int8"), ("GhostNet", "w8a8-pow2"), ("SqueezeNet", "w4a8")]
)
def test_cell(name: str, preset: str) -> None:
    cell = MATRIX.cell_of(name, preset, batches=(1, 7))
    assert cell.error == ""
    assert cell.islands == 0
    assert cell.runs == 20
    assert cell.grade == "EXACT"


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix sees a runtime that is off by one in one code of one run."""
    run = MATRIX.run

    def off_by_one(active: object, feeds: dict[str, object], names: list[str] | None = None) -> dict[str, object]:
        found = run(active, feeds, names)
        if names is not None:
            last = found[names[-1]]
            last.view(-1)[0] = 255 - last.view(-1)[0]
        return found

    monkeypatch.setattr(MATRIX, "run", off_by_one)
    cell = MATRIX.cell_of("LeNet, tanh", "w8a8", batches=(1,), threads=(1,))
    assert cell.grade == "differs"
    assert cell.different == {f"{form}/{level}/1/1": 1 for form, level in MATRIX.FORMS}
