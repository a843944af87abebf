"""Shows the doctests of docstrings as code: an extension of griffe, which reads them for the reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

_BLOCK = re.compile(r"(?:^>>>.*(?:\n(?!\s*$).*)*)", re.MULTILINE)


class DoctestBlocks(griffe.Extension):
    """Puts a fence around each run of lines that begins with a prompt and ends before an empty line."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None and "```" not in obj.docstring.value:
            obj.docstring.value = _BLOCK.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)
