"""`StatefulSampler`: the rest of an epoch after any batch, whatever the workers have fetched ahead."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import truequant as tq
from truequant.checkpoints import sampler as module
from truequant.errors import ArgumentError, FileError


class Noisy(Dataset[Tensor]):
    """Items that draw from all three generators."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, random.random(), numpy.random.random(), float(torch.rand(()))], dtype=torch.float64)


def build(workers: int) -> tuple[tq.training.StatefulSampler, DataLoader[Tensor]]:
    sampler = tq.training.StatefulSampler(23, seed=3)
    return sampler, DataLoader(sampler.seeded(Noisy()), 4, sampler=sampler, num_workers=workers)


def batches(sampler: tq.training.StatefulSampler, loader: DataLoader[Tensor], count: int) -> list[Tensor]:
    found: list[Tensor] = []
    while len(found) < count:
        for batch in sampler.counted(loader):
            found.append(batch)
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_after_any_batch_the_rest_is_the_same(workers: int) -> None:
    whole = torch.cat(batches(*build(0), 14))  # two epochs of six batches, and more
    assert sorted(whole[:23, 0].tolist()) == list(range(23))
    assert whole[:23, 0].tolist() != whole[23:46, 0].tolist()
    assert len(whole.unique(dim=0)) == len(whole)  # noise of its own in each epoch
    for taken in (3, 6, 8) if workers else range(14):
        sampler, loader = build(workers)
        first = batches(sampler, loader, taken)
        resumed, again = build(workers)
        resumed.load_state_dict(sampler.state_dict())
        rest = batches(resumed, again, 14 - taken)
        assert torch.equal(torch.cat([*first, *rest]), whole)


def test_the_random_numbers_of_the_training_are_left_alone() -> None:
    sampler, loader = build(0)
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    expected = float(torch.rand(())), random.random(), numpy.random.random()
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    batches(sampler, loader, 8)
    assert (float(torch.rand(())), random.random(), numpy.random.random()) == expected


def test_ranks_share_an_epoch_and_another_number_of_them_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(rank: int, ranks: int, state: dict[str, Any] | None = None) -> tuple[list[int], dict[str, Any]]:
        monkeypatch.setattr(module, "world", lambda: (rank, ranks))
        sampler = tq.training.StatefulSampler(24, seed=1)
        loader = DataLoader(range(24), 3, sampler=sampler)  # type: ignore[arg-type]
        if state is not None:
            sampler.load_state_dict(state)
        found: list[int] = []
        for batch in sampler.counted(loader):
            found += batch.tolist()
            if state is None and len(found) == 6:
                break
        return found, sampler.state_dict()

    parts = [of(rank, 2) for rank in range(2)]
    assert parts[0][1] == parts[1][1]
    assert parts[0][1]["taken"] == 12
    seen = parts[0][0] + parts[1][0]
    rest = [index for rank in range(4) for index in of(rank, 4, parts[0][1])[0]]
    assert sorted(seen + rest) == list(range(24))
    assert sorted(seen + of(0, 1, parts[0][1])[0]) == list(range(24))


@pytest.mark.parametrize(
    "change", [lambda s: s.update(size=7), lambda s: s.update(taken=-1), lambda s: s.update(epoch="1"), lambda s: s.clear()]
)
def test_a_state_of_other_data_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    sampler = tq.training.StatefulSampler(23)
    state = sampler.state_dict()
    change(state)
    with pytest.raises(FileError, match="StatefulSampler: "):
        sampler.load_state_dict(state)
    with pytest.raises(ArgumentError, match="the size is no count"):
        tq.training.StatefulSampler(0)
    with pytest.raises(ArgumentError, match="a loader of another sampler"):
        next(sampler.counted(DataLoader(range(23))))  # type: ignore[arg-type]
