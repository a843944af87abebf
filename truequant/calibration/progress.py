"""Bars on a terminal, with rate, time left, and a loss where there is one; nothing where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

T = TypeVar("T")


def progress_bars(console: Console, *, transient: bool = False) -> Progress:
    """Bars with items done, rate, time left and, of a task that is given one (`loss=0.7`), the last loss.

    A console that is no terminal gets their last state.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_rate(task.finished_speed or task.speed), style="progress.data.speed")

    class Loss(ProgressColumn):
        def render(self, task: Task) -> Text:
            loss = task.fields.get("loss")
            return Text("" if loss is None else f"loss {float(loss):.4f}")

    title = TextColumn("{task.description}", table_column=Column(ratio=1, min_width=12, overflow="ellipsis", no_wrap=True))
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(True, elapsed_when_finished=True),
        Loss(),
    )
    return Progress(title, *columns, console=console, refresh_per_second=4, transient=transient)


def _rate(rate: float | None) -> str:
    if rate is None:
        return "–/s"
    return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


class Bars:
    """A bar for each thing that takes long, while the context lasts. `show`: None asks whether there is a terminal."""

    def __init__(self, show: bool | None = None) -> None:
        self.show = sys.stderr.isatty() if show is None else show
        self._progress: Progress | None = None
        self._tasks: list[Any] = []

    def __enter__(self) -> Bars:
        if self.show:
            from rich.console import Console

            self._progress = progress_bars(Console(stderr=True, force_terminal=True), transient=True)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """`items` one by one; the bar goes when they are done. total: how many, where `items` does not say."""
        if self._progress is None:
            yield from items
            return
        if total is None and isinstance(items, Sized):
            total = len(items)
        task = self._progress.add_task(what, total=total)
        self._tasks.append(task)
        with contextlib.ExitStack() as stack:
            stack.callback(self._progress.remove_task, task)
            stack.callback(self._tasks.remove, task)
            stack.callback(self._progress.refresh)  # what takes less than a quarter of a second is seen, too
            for item in items:
                yield item
                self._progress.advance(task)

    def loss(self, value: Any) -> None:
        """The current loss of what was begun last; a tensor is read only where there is a bar."""
        if self._progress is not None and self._tasks:
            self._progress.update(self._tasks[-1], loss=float(value))
