"""Area 6: `MovingAverageStatistics` is `m <- momentum * m + (1 - momentum) * x`, in training only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from truequant import MovingAverageStatistics
from truequant.errors import ArgumentError


def fed(values: torch.Tensor, momentum: float) -> MovingAverageStatistics:
    average = MovingAverageStatistics(momentum)
    for value in values:
        average(value)
    return average


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_the_recurrence(momentum: float) -> None:
    torch.manual_seed(0)
    values = torch.randn(200)
    expected = float(values[0])
    for value in values[1:].tolist():
        expected = momentum * expected + (1 - momentum) * value
    assert float(fed(values, momentum).average) == pytest.approx(expected, abs=1e-5)


def test_the_first_value_is_copied() -> None:
    average = MovingAverageStatistics(0.99)
    assert average(torch.tensor(7.0)) == 7.0


def test_momentum_at_its_extremes() -> None:
    values = torch.tensor([3.0, 5.0, -2.0])
    assert fed(values, 0.0).average == -2.0  # the last value
    assert fed(values, 1.0).average == 3.0  # the first value


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_out_of_range(momentum: float) -> None:
    with pytest.raises(ArgumentError, match="momentum out of range"):
        MovingAverageStatistics(momentum)


def test_not_updated_in_evaluation() -> None:
    average = fed(torch.tensor([1.0, 2.0]), 0.5).eval()
    before = {k: v.clone() for k, v in average.state_dict().items()}
    assert average(torch.tensor(100.0)) == 1.5
    assert all(torch.equal(v, before[k]) for k, v in average.state_dict().items())


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_smoothing_reduces_the_variance_as_theory_says(momentum: float) -> None:
    """Of independent values the average has (1 - m) / (1 + m) of the variance."""
    torch.manual_seed(1)
    maxima = torch.randn(20_000, 16).amax(1)
    average = MovingAverageStatistics(momentum)
    smoothed = torch.stack([average(v).clone() for v in maxima])[200:]
    ratio = float(smoothed.var() / maxima.var())
    assert ratio == pytest.approx((1 - momentum) / (1 + momentum), rel=0.1)


def test_reset() -> None:
    average = fed(torch.tensor([1.0, 2.0]), 0.5)
    average.reset()
    assert int(average.updates) == 0
    assert average(torch.tensor(9.0)) == 9.0


def test_per_channel() -> None:
    average = MovingAverageStatistics(0.5, channels=3)
    average(torch.tensor([1.0, 2.0, 3.0]))
    assert average(torch.tensor([3.0, 2.0, -3.0])).tolist() == [2.0, 2.0, 0.0]
    with pytest.raises(ArgumentError, match="a value of another shape"):
        average(torch.tensor([1.0, 2.0]))


def test_empty_and_non_finite_values_leave_it_alone() -> None:
    average = fed(torch.tensor([1.0, 3.0]), 0.5)
    for value in (torch.empty(0), torch.tensor(float("nan")), torch.tensor(float("inf")), torch.tensor(float("-inf"))):
        assert average(value) == 2.0
    channels = MovingAverageStatistics(0.5, channels=2)
    channels(torch.tensor([float("nan"), 4.0]))
    assert channels(torch.tensor([6.0, 8.0])).tolist() == [6.0, 6.0]  # the first channel sees its first value


def test_state_stays_float32() -> None:
    average = fed(torch.tensor([1.0]), 0.5).half()
    assert average.average.dtype == torch.float32
    assert average(torch.tensor(2.0, dtype=torch.float16)) == 1.5


def _rank(rank: int, folder: str) -> None:
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    average = MovingAverageStatistics(0.5, channels=2)
    average(torch.tensor([1.0, float("nan")]) if rank == 0 else torch.tensor([3.0, 8.0]))
    average.synchronize()
    torch.save(average.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_merged_across_ranks(tmp_path: Path) -> None:
    """The mean over the ranks that have seen a value, equal on every rank."""
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert states[0]["average"].tolist() == states[1]["average"].tolist() == [2.0, 8.0]
