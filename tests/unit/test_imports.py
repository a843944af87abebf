"""No two files of the package import each other, straight or around: each can be read, tested and changed with those below it.

import-linter holds the rooms; this holds the files in them. Imports in functions and under TYPE_CHECKING count, and so does a
file that imports its own package: a package's `__init__` imports what it publishes.
"""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import grimp
import pytest

import truequant

ROOT = Path(truequant.__file__).parent
COMPILED = {"truequant.kernels._native"}
"""Modules without a Python file. grimp takes an import of one for an import of the package that holds it."""


def imports_of(package: str) -> dict[str, set[str]]:
    """The modules of a package, with the modules that each imports."""
    graph = grimp.build_graph(package, cache_dir=None)
    found = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    for compiled in COMPILED:
        holder = compiled.rpartition(".")[0]
        for module in found:
            if holder in found[module] and _names(module, holder) <= COMPILED:
                found[module].remove(holder)
    return found


def _names(module: str, package: str) -> set[str]:
    """What a module imports of a package, by full names."""
    source = ROOT.parent.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    statements = [s for s in ast.walk(ast.parse(source)) if isinstance(s, ast.ImportFrom) and s.module == package]
    return {f"{package}.{alias.name}" for s in statements for alias in s.names} or {package}


def circles(imports: dict[str, set[str]]) -> list[str]:
    """A shortest circle through each module that lies on one, every set of modules that reach each other once."""
    told: list[str] = []
    seen: set[str] = set()
    for start in sorted(imports):
        if start in seen or (path := _way(imports, start, start)) is None:
            continue
        seen |= {other for other in imports if _way(imports, start, other) and _way(imports, other, start)}
        told.append(" -> ".join(path))
    return told


def _way(imports: dict[str, set[str]], start: str, end: str) -> list[str] | None:
    """The shortest way of imports from a module to another, or back to itself."""
    before: dict[str, str] = {}
    reached = [start]
    for module in reached:
        for other in sorted(imports[module]):
            if other in before:
                continue
            before[other] = module
            if other == end:
                way = [end]
                while len(way) == 1 or way[-1] != start:
                    way.append(before[way[-1]])
                return way[::-1]
            reached.append(other)
    return None


def test_no_two_files_import_each_other() -> None:
    found = circles(imports_of("truequant"))
    assert not found, "files import each other; move what both need into a file below both:\n" + "\n".join(found)


def test_every_file_is_seen() -> None:
    """grimp leaves out a folder without an `__init__`, and what it leaves out has no circles."""
    files = {path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py")}
    names = {".".join(path.parts).removesuffix(".__init__") for path in files}
    assert names == set(imports_of("truequant"))


def test_what_is_taken_for_compiled_has_no_python_file() -> None:
    for name in COMPILED:
        place = ROOT.parent.joinpath(*name.split("."))
        assert not place.with_suffix(".py").exists()
        assert not place.is_dir()
        assert f'"{name}"' in (ROOT.parent / "setup.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "from rings.pack import b", "b": "from rings.pack import a"}, "rings.pack.a -> rings.pack.b -> rings.pack.a"),
        (
            {
                "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rings.pack.b import X",
                "b": "import rings.pack.a",
            },
            "rings.pack.a -> rings.pack.b -> rings.pack.a",
        ),
        (
            {"a": "def f():\n    from rings.pack.b import g", "b": "import rings.pack.c", "c": "from rings.pack import a"},
            "rings.pack.a -> rings.pack.b -> rings.pack.c -> rings.pack.a",
        ),
        (
            {"__init__": "from rings.pack.a import f", "a": "from rings.pack import g"},
            "rings.pack -> rings.pack.a -> rings.pack",
        ),
        ({"a": "from rings.pack import b", "b": "import json"}, None),
    ],
)
def test_what_is_a_circle(files: dict[str, str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = tmp_path / "rings" / "pack"
    pack.mkdir(parents=True)
    for place in (pack.parent, pack):
        (place / "__init__.py").touch()
    for name, text in files.items():
        (pack / f"{name}.py").write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert circles(imports_of("rings")) == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    "place",
    [
        "truequant.planning.plan OwnerPlan", "truequant.planning.plan QuantizerPlan", "truequant.planning.plan Site",
        "truequant.planning.plan TensorSpec", "truequant.schemes.config Ends", "truequant.integer.nodes Conv",
        "truequant.integer.nodes Edge",
    ],
)  # fmt: skip
def test_pickles_find_what_moved(place: str) -> None:
    """A pickled model names the classes of its plan and its nodes by the files where they stood when it was written."""
    module, name = place.split()
    found = pickle.loads(f"c{module}\n{name}\n.".encode())
    assert found.__module__ != module
    assert found.__name__ == name
