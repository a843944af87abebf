"""Ways of training on several ranks: accumulated gradients, units of FSDP2, unused scales, BatchNorm over all ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import truequant as tq
from tests.parity.ranks import BASE, KINDS, Net, data, run
from tests.parity.ranks_training import prepared_per_tensor, whole_batch
from truequant.errors import StateError

Rank = dict[str, Any]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rank, Rank]:
    first, second = run("tests.parity.ranks_training", "everything", (2,), tmp_path_factory.mktemp("ranks"))[2]
    return first, second


@pytest.mark.slow
def test_accumulated_gradients(ranks: tuple[Rank, Rank]) -> None:
    """Ranges count every batch of every rank, whether or not gradients are exchanged behind it."""
    first, second = (rank["accumulated"] for rank in ranks)
    assert first == second
    alone = tq.FakeQuantize(dict(tq.quantizers(tq.prepare(Net(), torch.zeros(2, 3, 8, 8), BASE)))["input_0"].scheme)
    for step in range(4):
        alone(torch.cat([data(0, step), data(1, step)]))
    alone.eval()
    for kind in KINDS:
        assert first[kind]["scales"]["input_0"] == [[float(alone.scale)], [float(alone.zero_point)]]


@pytest.mark.slow
def test_units_of_fsdp_do_not_matter(ranks: tuple[Rank, Rank]) -> None:
    """Learned scales are read, for rounding biases, when the layer they belong to is not gathered: the same bits."""
    first, second = (rank["units"] for rank in ranks)
    assert first == second
    assert first["root"] == first["blocks"] == first["layers"]


@pytest.mark.slow
def test_learned_scales_that_are_off_for_a_while(ranks: tuple[Rank, Rank]) -> None:
    """DDP without `find_unused_parameters` waits for a gradient of every parameter."""
    first, second = (rank["idle"] for rank in ranks)
    assert first == second
    for kind in KINDS:
        still, still_too, moves, _ = first[kind]["moved"]
        assert still == still_too == 0.0 < moves


@pytest.mark.slow
def test_learned_scales_that_are_sharded_stay_within_their_limits(ranks: tuple[Rank, Rank]) -> None:
    first, second = (rank["limits"] for rank in ranks)
    assert first == second
    for reach in first.values():
        assert reach[0] > 7.0  # before and behind `eval()`
        assert max(reach[1::2]) <= 7.0


@pytest.mark.slow
def test_batchnorm_over_all_ranks(ranks: tuple[Rank, Rank]) -> None:
    """Its running statistics are equal then, so that the whole evaluated model is."""
    first, second = (rank["sync_batchnorm"] for rank in ranks)
    assert any(".running_var" in name for name in first["state"])
    assert first == second


@pytest.mark.slow
def test_batchnorm_over_all_ranks_behind_one_scale(ranks: tuple[Rank, Rank]) -> None:
    """It trains as one process does that sees the batches of both ranks: statistics, and the gradient through them."""
    first, second = (rank["sync_batchnorm_per_tensor"] for rank in ranks)
    assert first == second
    qat = prepared_per_tensor(Net())
    alone = whole_batch(qat, qat, [torch.cat([data(rank, step) for rank in range(2)]) for step in range(2)])
    assert alone.keys() == first.keys()
    for name, values in alone.items():
        torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(values), rtol=1e-4, atol=1e-5, msg=name)


def test_batchnorm_that_is_replaced_after_preparing_is_an_error() -> None:
    """Its running statistics would be trained, and those of the one before evaluated."""
    qat = tq.prepare(Net(), torch.zeros(2, 3, 8, 8), BASE)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(qat)
    with pytest.raises(StateError, match="'block.conv': the BatchNorm behind it was replaced") as caught:
        converted.eval()
    assert caught.value.fix.startswith("convert first, then prepare")
    first = tq.prepare(nn.SyncBatchNorm.convert_sync_batchnorm(Net()), torch.zeros(2, 3, 8, 8), BASE).eval()
    assert isinstance(first.block.norm, nn.SyncBatchNorm)
