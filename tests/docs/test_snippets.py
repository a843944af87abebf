"""Every Python snippet of the documentation runs, page by page, from top to bottom; the pages are all in the site's menu."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import truequant as tq
from truequant.schemes import IntegerType

ROOT = Path(__file__).resolve().parents[2]
PAGES = {str(p.relative_to(ROOT)): p for p in sorted((ROOT / "docs").rglob("*.md"))}
SNIPPET = re.compile(r"^(?:```python|<!-- python)\n(.*?)^(?:```|-->)", re.DOTALL | re.MULTILINE)
"""What a page shows, and, in a comment, what it takes for granted."""
WITH_CODE = [name for name, page in PAGES.items() if SNIPPET.search(page.read_text())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of other packages
@pytest.mark.parametrize("name", WITH_CODE)
def test_snippets_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGES[name].read_text()
    namespace: dict[str, Any] = {"__name__": "snippets"}
    for found in SNIPPET.finditer(text):
        line = text.count("\n", 0, found.start(1))
        exec(compile("\n" * line + found[1], name, "exec"), namespace)


def _menu(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in _menu(part)]


def test_every_page_is_in_the_menu() -> None:
    menu = _menu(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(menu) == sorted(name.removeprefix("docs/") for name in PAGES)


def test_every_public_name_stands_in_the_reference_once() -> None:
    paths = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    names = [path.rpartition(".")[2] for path in paths]
    modules = [getattr(tq, name) for name in tq.__all__ if isinstance(getattr(tq, name), ModuleType)]
    public = {name: getattr(module, name) for module in (*modules, tq) for name in module.__all__}
    documented = {n for n, found in public.items() if not isinstance(found, IntegerType | ModuleType)}
    assert len(names) == len(set(names))
    assert documented <= set(names)  # beside them, what some of them return
    for path, name in zip(paths, names, strict=True):
        found = getattr(importlib.import_module(path.rpartition(".")[0]), name)
        assert found is public.get(name, found), path


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target
