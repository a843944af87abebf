"""Every family of tests/models goes all the way, and what is in integer is exact."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.models import FAMILIES


def _script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TABLE = _script()


@pytest.mark.filterwarnings("ignore")  # the models' own
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    family = FAMILIES[name]
    row = TABLE.row_of(family)
    assert row.complete, f"{row.reached}: {row.note}"
    if row.islands == 0:
        assert row.different == 0
    assert row.different < 1e-3 * row.compared
    assert row.integer >= {"cnn": 0.99, "sequence": 0.0, "transformers": 0.95}[family.kind]


def test_the_transformers_package_is_there() -> None:
    """Without it a third of the table would be left out without a word."""
    assert importlib.util.find_spec("transformers") is not None
