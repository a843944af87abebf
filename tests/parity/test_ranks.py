"""Several processes that train together (gloo): scales are equal on every rank, and what any rank saw counts."""

from __future__ import annotations

import pytest
import torch

import truequant as tq
from tests.parity.ranks import CONFIGS, KINDS, STEPS, Found, Net, data, run

WORLDS = (1, 2, 4)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Found]]:
    return run("tests.parity.ranks", "matrix", WORLDS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("observer", CONFIGS)
def test_scales_are_equal_on_every_rank(matrix: dict[int, list[Found]], world: int, kind: str, observer: str) -> None:
    found = [ranks[f"{kind}, {observer}"] for ranks in matrix[world]]
    assert len(found[0]["scales"]) == 8
    assert all(other == found[0] for other in found)
    assert (found[0]["moved"] > 0) == (observer == "learned")


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("observer", CONFIGS)
def test_the_range_is_that_of_what_all_ranks_saw(matrix: dict[int, list[Found]], world: int, kind: str, observer: str) -> None:
    """To the bit: that of one process which sees the batches of all."""
    qat = tq.prepare(Net(), torch.zeros(2, 3, 8, 8), CONFIGS[observer])
    alone = tq.FakeQuantize(dict(tq.quantizers(qat))["input_0"].scheme)
    for step in range(STEPS):
        alone(torch.cat([data(rank, step) for rank in range(world)]))
    alone.eval()
    expected = [[float(alone.scale)], [float(alone.zero_point)]]
    assert matrix[world][0][f"{kind}, {observer}"]["scales"]["input_0"] == expected
