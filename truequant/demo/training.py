"""An ordinary PyTorch training loop, used unchanged for float training and for quantization-aware training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OnStep = Callable[[int, float], None]
OnEpoch = Callable[[int], None]


class Saving(Protocol):
    """Where a training is kept and taken up again."""

    def restore(self, **parts: Any) -> int:
        """Restore what was kept last; the step that it was kept behind, 0 where there is nothing."""

    def step(self, step: int, *, last: bool, **parts: Any) -> None:
        """A step is done, of an epoch with its evaluation where it is the epoch's last."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: SGD with Nesterov momentum; the learning rate falls along half a cosine from `learning_rate` to 0."""

    epochs: int
    learning_rate: float
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0

    def batch(self, images: int) -> int:
        """Images in a batch: all of them where there are fewer than `batch_size`."""
        return min(self.batch_size, images)

    def steps(self, images: int) -> int:
        """Steps of the whole training; the last, incomplete batch of an epoch is left out."""
        return self.epochs * (images // self.batch(images))


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    saving: Saving | None = None,
) -> None:
    """Train `model` in place and leave it in `eval()`; with `saving`, from where its checkpoints leave off.

    `on_step(step, loss)` is called behind each step and `on_epoch(step)`, with the model in `eval()`, behind each epoch;
    steps count from 1. The order of the images depends on `recipe.seed` alone, so that two models see the same batches.
    """
    steps, size = recipe.steps(len(images)), recipe.batch(len(images))
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    shuffle = torch.Generator().manual_seed(recipe.seed)
    parts = {"model": model, "optimizer": optimizer, "scheduler": schedule}
    done = saving.restore(**parts) if saving is not None else 0
    step = 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=shuffle)
        batches = [batch for batch in order.split(size) if len(batch) == size]
        if step + len(batches) <= done:
            step += len(batches)
            continue
        model.train()
        for number, batch in enumerate(batches, 1):
            if step < done:
                step += 1
                continue
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if on_step is not None:
                on_step(step, loss.item())
            if number == len(batches):
                model.eval()
                if on_epoch is not None:
                    on_epoch(step)
            if saving is not None:
                saving.step(step, last=step == steps, **parts)
    model.eval()


@torch.no_grad()
def logits(model: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 500) -> Tensor:
    """What `model` answers, `(n, classes)`; a module is evaluated as it stands, in the mode it is in."""
    return torch.cat([model(batch) for batch in images.split(batch_size)])


def accuracy(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    return 100 * int((logits(model, images).argmax(1) == labels).sum()) / len(labels)
