"""`make tests-of FILE=…` answers from what was recorded."""

from __future__ import annotations

from tests.mutants.of import reaching
from tests.mutants.reach import Reach


def test_files_of_tests_that_reach_a_file_quickest_first() -> None:
    lines = {
        "truequant/a.py": {1: [], 2: ["t/slow.py::x", "t/quick.py::y"], 3: ["t/quick.py::z"]},
        "truequant/b.py": {1: ["t/b.py::b"]},
    }
    files = {"truequant/a.py": {2: ["t/fixture.py"]}}
    seconds = {"t/slow.py::x": 3.0, "t/quick.py::y": 0.5, "t/quick.py::z": 0.25, "t/fixture.py::f": 1.0, "t/b.py::b": 0.0}
    found = reaching(Reach(lines, files, seconds), "truequant/a.py")
    assert found == [("t/quick.py", 2, 0.75), ("t/fixture.py", 1, 1.0), ("t/slow.py", 1, 3.0)]
    assert reaching(Reach(lines, files, seconds), "truequant/c.py") == []
