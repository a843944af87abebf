"""How the C++ files hang together: what csrc/README.md says, and what keeps a build short."""

from __future__ import annotations

import re
from pathlib import Path

CSRC = Path(__file__).parents[3] / "csrc"


def included(file: Path) -> set[str]:
    return set(re.findall(r'^#include [<"]([^>"]+)[>"]', file.read_text(), re.MULTILINE))


def test_kernels_know_neither_torch_nor_the_bindings() -> None:
    files = sorted((CSRC / "kernels").iterdir())
    assert files
    outside = re.compile(r"(ATen|c10|torch|Python\.h|pybind11|\.\.)")
    assert {file.name: found for file in files if (found := [name for name in included(file) if outside.match(name)])} == {}


def test_bindings_are_compiled_in_one_translation_unit() -> None:
    assert included(CSRC / "bindings.cpp") == {f"bindings/{file.name}" for file in (CSRC / "bindings").glob("*.cpp")}
