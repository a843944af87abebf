"""A bar on the terminal while batches stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any


@contextmanager
def bar(batches: Iterable[Any], wanted: bool | None) -> Iterator[Callable[[], None]]:
    """A bar on stderr that the function it gives advances by one batch. wanted: None where stderr is a terminal."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("verifying"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=console.is_terminal) as progress:
        task = progress.add_task("verifying", total=len(batches) if isinstance(batches, Sized) else None)
        yield lambda: progress.advance(task)
