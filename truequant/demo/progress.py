"""Progress of a training on the terminal, and its record for the curves."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import nn

from truequant.demo.mnist import Mnist
from truequant.demo.training import Recipe, accuracy, fit
from truequant.reports import Branch


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("– steps/s" if rate is None else f"{rate:.0f} steps/s", style="progress.data.speed")


def training_progress(console: Console) -> Progress:
    """Bars with steps done, rate, time left and the last loss; a console that is no terminal gets their last state."""
    return Progress(
        TextColumn("{task.description:<20}"), BarColumn(bar_width=24), MofNCompleteColumn(), _Rate(),
        TimeRemainingColumn(elapsed_when_finished=True), TextColumn("loss {task.fields[loss]:.4f}"),
        console=console, refresh_per_second=4,
    )  # fmt: skip


def train_visibly(name: str, model: nn.Module, data: Mnist, recipe: Recipe, start: int, progress: Progress) -> Branch:
    """Train `model` in place under a bar, and return its losses and its accuracy on the held-out images by step.

    `start`: the steps that led to `model`; where there are some, its accuracy at the start is recorded too.
    """
    task = progress.add_task(name, total=recipe.steps(len(data.train_images)), loss=float("nan"))
    losses: list[float] = []
    accuracies: dict[int, float] = {}

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        progress.update(task, completed=step, loss=loss)

    def on_epoch(step: int) -> None:
        accuracies[start + step] = accuracy(model, data.held_out_images, data.held_out_labels)

    if start:
        model.eval()
        on_epoch(0)
    fit(model, data.train_images, data.train_labels, recipe, on_step, on_epoch)
    return Branch(name, start, tuple(losses), accuracies)
