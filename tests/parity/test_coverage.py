"""Every family of tests/models goes all the way, and what is in integer is exact."""

from __future__ import annotations

import importlib.util

import pytest

from tests.models import FAMILIES
from tests.scripts import script

TABLE = script("coverage")


@pytest.mark.filterwarnings("ignore")  # the models' own
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    family = FAMILIES[name]
    row = TABLE.row_of(family)
    assert row.complete, f"{row.reached}: {row.note}"
    if row.islands == 0:
        assert row.different == 0
    # Behind a float op a code that the runtime rounds otherwise moves others; none did when the table was made.
    assert row.different == row.behind < 1e-3 * row.compared
    assert row.integer >= {"cnn": 0.99, "sequence": 0.0, "transformers": 0.95}[family.kind]


def test_the_transformers_package_is_there() -> None:
    """Without it a third of the table would be left out without a word."""
    assert importlib.util.find_spec("transformers") is not None
