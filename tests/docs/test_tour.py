"""The tour for maintainers names files that exist, and every state of the clock."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from truequant.fake.clock import State

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "docs/explanation/tour.md").read_text()


def test_every_file_of_the_tour_exists() -> None:
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*|pyproject\.toml)`", TOUR)
    assert len(named) > 40
    missing = [name for name in named if not any((ROOT / at / name).exists() for at in ("", "truequant"))]
    assert not missing


def test_every_name_of_code_is_there() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "truequant").rglob("*.py"))
    names = set(re.findall(r"`([A-Z]\w+|_\w+)`", TOUR)) | {"qat_class", "output_shape", "register_op", "begin", "exact"}
    assert not [name for name in names if not re.search(rf"\b{name}\b", source)]


def test_the_clock_has_the_states_of_the_table() -> None:
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \|$", TOUR, re.M)
    assert set(rows) - {"state"} == set(get_args(State))
