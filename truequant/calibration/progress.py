"""Bars on a terminal; nothing where there is none."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

T = TypeVar("T")


class Bars:
    """A bar for each thing that takes long, while the context lasts. `show`: None asks whether there is a terminal."""

    def __init__(self, show: bool | None = None) -> None:
        self.show = sys.stderr.isatty() if show is None else show
        self._progress: Any = None

    def __enter__(self) -> Bars:
        if self.show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(True)
            console = Console(stderr=True, force_terminal=True)
            self._progress = Progress(*columns, console=console, transient=True)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def track(self, items: Iterable[T], what: str) -> Iterator[T]:
        """`items` one by one; the bar goes when they are done."""
        if self._progress is None:
            yield from items
            return
        task = self._progress.add_task(what, total=len(items) if isinstance(items, Sized) else None)
        with contextlib.ExitStack() as stack:
            stack.callback(self._progress.remove_task, task)
            for item in items:
                yield item
                self._progress.advance(task)
