"""Tables of the command line: one look, and long names fold instead of being cut."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table


def table(title: str, headings: Sequence[str], *, right: Sequence[str] = (), ratios: Sequence[int] = ()) -> Table:
    """An empty table. right: headings of columns of numbers; ratios: widths in proportion, to fill the terminal."""
    made = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, expand=bool(ratios)
    )
    for index, heading in enumerate(headings):
        justify = "right" if heading in right else "left"
        made.add_column(heading, justify=justify, overflow="fold", ratio=ratios[index] if ratios else None)  # type: ignore[arg-type]
    return made
