"""`StatefulSampler`: the order of the data as state, so that a training goes on in the middle of an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from truequant.checkpoints.ranks import world
from truequant.errors import ArgumentError, FileError

T = TypeVar("T")


class _Sample(int):
    """An index that tells its epoch to the worker that fetches it."""

    epoch: int


class StatefulSampler(Sampler[int]):
    """Indices in an order that depends on `seed` and the epoch alone, from a position that is state.

    A loader's workers fetch ahead of the training, so that the sampler cannot know what the training has taken: `counted`
    counts it. Random numbers that a dataset draws would depend on which worker fetches what: `seeded` seeds each item.

        sampler = tq.training.StatefulSampler(len(data), seed=0)
        loader = DataLoader(sampler.seeded(data), batch_size=64, sampler=sampler, num_workers=4)
        while step < steps:
            for x, y in sampler.counted(loader):
                ...
                manager.step(step, model=model, optimizer=optimizer, loader=sampler)

    size: how many samples there are. Of several ranks each gets every so-manieth index, an equal number on all; what is left
    over at the end of an epoch is left out. The position counts over all ranks, so that any number of them can resume.
    Raises `ArgumentError` for a size below 1.

    >>> sampler = StatefulSampler(5, seed=1)
    >>> loader = DataLoader(range(5), batch_size=2, sampler=sampler)
    >>> batches = sampler.counted(loader)
    >>> taken, state = next(batches).tolist(), sampler.state_dict()
    >>> rest = [batch.tolist() for batch in batches]
    >>> sampler.load_state_dict(state)
    >>> [batch.tolist() for batch in sampler.counted(loader)] == rest, sampler.epoch
    (True, 1)
    """

    def __init__(self, size: int, *, seed: int = 0, shuffle: bool = True) -> None:
        if type(size) is not int or size < 1:
            raise ArgumentError("StatefulSampler: the size is no count", got=repr(size), expected="an int from 1 on")
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.epoch = 0
        self.taken = 0

    def __len__(self) -> int:
        """What is left of this epoch for this rank."""
        return (self.size - self.taken) // world()[1]

    def __iter__(self) -> Iterator[int]:
        rank, ranks = world()
        if self.shuffle:
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(_mixed(self.seed, self.epoch)))
        else:
            order = torch.arange(self.size)
        for index in order[self.taken :][: len(self) * ranks][rank::ranks].tolist():
            sample = _Sample(index)
            sample.epoch = self.epoch
            yield sample

    def counted(self, loader: DataLoader[T]) -> Iterator[T]:
        """The batches of `loader` until the epoch's end; each counts as taken from the moment that it is given out.

        The random numbers of the training are not touched: a loader draws one for its workers each time it starts.
        """
        if loader.batch_sampler is not None and getattr(loader.batch_sampler, "sampler", None) is not self:
            raise ArgumentError("StatefulSampler.counted: a loader of another sampler", fix="DataLoader(…, sampler=sampler)")
        end, ranks = self.taken + len(self) * world()[1], world()[1]
        before = torch.get_rng_state()
        batches = iter(loader)
        torch.set_rng_state(before)
        for batch in batches:
            self.taken = min(self.taken + (loader.batch_size or 1) * ranks, end)
            yield batch
        self.epoch += 1
        self.taken = 0

    def seeded(self, dataset: Dataset[T]) -> Dataset[T]:
        """`dataset`, whose items draw random numbers (of Python, NumPy, torch) that depend on seed, epoch and index alone."""
        return _Seeded(dataset, self.seed)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position, and what the order depends on."""
        return {"epoch": self.epoch, "seed": self.seed, "shuffle": self.shuffle, "size": self.size, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. FileError for a state of other data or none at all."""
        expected = self.state_dict()
        if not isinstance(state, dict) or {k: type(v) for k, v in state.items()} != {k: type(v) for k, v in expected.items()}:
            raise FileError("StatefulSampler: no state of a sampler", got=repr(state)[:120], expected=repr(expected))
        if state["size"] != self.size or not 0 <= state["taken"] <= self.size or state["epoch"] < 0:
            raise FileError(
                "StatefulSampler: a state of other data", got=f"{state['size']} samples, {state['taken']} of them taken",
                expected=f"{self.size} samples",
            )  # fmt: skip
        self.epoch, self.seed, self.shuffle, self.taken = (state[k] for k in ("epoch", "seed", "shuffle", "taken"))


class _Seeded(Dataset[T]):
    def __init__(self, dataset: Dataset[T], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> T:
        seed = _mixed(self.seed, getattr(index, "epoch", 0), int(index))
        states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            return self.dataset[int(index)]
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])
            torch.set_rng_state(states[2])


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, each of which matters (NumPy's own way to do it)."""
    return int(numpy.random.SeedSequence([n % 2**64 for n in numbers]).generate_state(1, numpy.uint64)[0] >> 1)
