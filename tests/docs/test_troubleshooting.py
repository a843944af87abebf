"""What the page quotes of errors and warnings is what the package says."""

from __future__ import annotations

import re
from pathlib import Path

import truequant as tq

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()


def test_quoted_sentences_and_classes_are_the_packages() -> None:
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in (ROOT / "truequant").rglob("*.py")))
    quoted = [text for entry in re.findall(r"^\*\*(.+?)\((?:\w|`)+\)", PAGE, re.M) for text in re.findall(r"`([^`]+)`", entry)]
    assert len(quoted) > 12
    assert not [text for text in quoted if text not in source]
    for name in set(re.findall(r"\(`(\w+Error)`\)", PAGE)):
        assert issubclass(getattr(tq.errors, name), tq.TruequantError)
