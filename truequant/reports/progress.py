"""Progress of a training on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        if rate is None:
            return Text("– steps/s", style="progress.data.speed")
        return Text(f"{rate:.0f} steps/s" if rate >= 10 else f"{rate:.1f} steps/s", style="progress.data.speed")


def training_progress(console: Console) -> Progress:
    """Bars with steps done, rate, time left and the last loss; a console that is no terminal gets their last state."""
    return Progress(
        TextColumn("{task.description:<20}"), BarColumn(bar_width=24), MofNCompleteColumn(), _Rate(),
        TimeRemainingColumn(elapsed_when_finished=True), TextColumn("loss {task.fields[loss]:.4f}"),
        console=console, refresh_per_second=4,
    )  # fmt: skip
