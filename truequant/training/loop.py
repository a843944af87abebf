"""A training loop that stops after any step and goes on to the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from truequant.errors import ArgumentError
from truequant.training.schedule import QATSchedule

Loss = Callable[[nn.Module, Any], Tensor]
"""From the model in `train()` and an item of the data to the loss: `lambda model, xy: cross_entropy(model(xy[0]), xy[1])`."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training stands behind a step: steps done in all, the epoch, and the items of it that were used."""

    step: int = 0
    epoch: int = 0
    item: int = 0


def training_steps(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss,
    optimizer: Optimizer,
    *,
    steps: int,
    start: Position = Position(),
    scheduler: Any = None,
    schedule: QATSchedule | None = None,
    clip_gradient: float | None = None,
    seed: int = 0,
) -> Iterator[tuple[Position, float]]:
    """Train `model` in place until `steps` steps are done in all; after each, its position and its loss.

    The order of the data, and what it draws in the main process, depend on `seed` and the epoch alone: random generators of
    Python, NumPy and torch, and the loader's own where it has one, are seeded at the start of each epoch. From a `start` in
    the middle of an epoch the items before it are drawn and passed over, and the random state is as it was: with a checkpoint
    restored first, what follows has the same bits as a training that never stopped.

    schedule: stepped before each step; scheduler: the learning rate's, stepped behind each. clip_gradient: greatest norm.
    Raises `ArgumentError` for data without items.

    >>> net, data = nn.Linear(2, 1), [torch.ones(4, 2), torch.zeros(4, 2)]
    >>> sgd = torch.optim.SGD(net.parameters(), 0.1)
    >>> [p.step for p, _ in training_steps(net, data, lambda m, x: m(x).square().mean(), sgd, steps=3)]
    [1, 2, 3]
    """
    position = start
    while position.step < steps:
        used = 0
        for item in _epoch(data, seed, position):
            if position.step >= steps:
                return
            model.train()
            if schedule is not None:
                schedule.step(model)
            optimizer.zero_grad()
            value = loss(model, item)
            value.backward()
            if clip_gradient is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_gradient)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            used += 1
            position = Position(position.step + 1, position.epoch, position.item + 1)
            yield position, float(value.detach())
        if not used and not position.item:
            raise ArgumentError("training: the data has no items", expected="at least one batch an epoch")
        position = Position(position.step, position.epoch + 1, 0)


def seed_random(number: int) -> None:
    """Seed the random generators of Python, NumPy and torch."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _epoch(data: Iterable[Any], seed: int, position: Position) -> Iterator[Any]:
    """The items of an epoch from `position.item` on."""
    resumed = position.item > 0
    with random_state_kept() if resumed else _nothing_kept():
        _seed(data, seed, position.epoch)
        items = iter(data)
        for _ in range(position.item):
            if next(items, _END) is _END:
                break
    yield from items


def _seed(data: Iterable[Any], seed: int, epoch: int) -> None:
    number = (seed * 1_000_003 + epoch) % (1 << 32)
    seed_random(number)
    holders: tuple[Any, ...] = (data, getattr(data, "sampler", None))
    for holder in holders:
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(number)
        if hasattr(holder, "set_epoch"):  # torch's DistributedSampler
            holder.set_epoch(epoch)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Random generators of Python, NumPy and torch are afterwards as they were before."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)


@contextmanager
def _nothing_kept() -> Iterator[None]:
    yield


_END = object()
