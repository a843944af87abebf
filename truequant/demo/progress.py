"""A training under a bar, and its record for the curves."""

from __future__ import annotations

from rich.progress import Progress
from torch import nn

from truequant.demo.mnist import Mnist
from truequant.demo.saving import PhaseSaving
from truequant.demo.training import Recipe, accuracy, fit
from truequant.reports import Branch


def train_visibly(
    name: str, model: nn.Module, data: Mnist, recipe: Recipe, start: int, progress: Progress, saving: PhaseSaving | None = None
) -> Branch:
    """Train `model` in place under a bar, and return its losses and its accuracy on the held-out images by step.

    `start`: the steps that led to `model`; where there are some, its accuracy at the start is recorded too.
    """
    task = progress.add_task(name, total=recipe.steps(len(data.train_images)))
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
    if saving is not None:
        saving.losses, saving.accuracies = losses, accuracies
    fit(model, data.train_images, data.train_labels, recipe, on_step, on_epoch, saving)
    progress.update(task, completed=len(losses), loss=losses[-1] if losses else None)
    return Branch(name, start, tuple(losses), accuracies)
