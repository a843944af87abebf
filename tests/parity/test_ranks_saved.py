"""Checkpoints of a training on several ranks: resumed to the same bits on as many, and loaded by any other number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import truequant as tq
from tests.parity.ranks import KINDS, run
from tests.parity.ranks_saved import FORMS, Net, digest

SCRIPT = "tests.parity.ranks_saved"
pytestmark = pytest.mark.slow


def test_two_ranks_resume_to_the_same_bits_and_one_process_loads_them(tmp_path: Path) -> None:
    ranks = run(SCRIPT, "resumed", (2,), tmp_path)[2]
    for kind in KINDS:
        for found in (rank[kind] for rank in ranks):
            assert found["restored"] == found["saved"]  # each rank's own running statistics too
            assert found["resumed"] == found["expected"]
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        checkpoint = tq.CheckpointManager(tmp_path / kind).restore(model=model, optimizer=optimizer)
        assert checkpoint is not None
        assert digest(model, optimizer) == ranks[0][kind]["saved"]  # BatchNorm's running statistics are those of rank 0


def test_what_two_ranks_saved_loads_on_one_and_on_four(tmp_path: Path) -> None:
    """One file, a manager's folder, torch.distributed.checkpoint: model and optimizer, and training goes on."""
    wrote = run(SCRIPT, "saved", (2,), tmp_path)[2]
    assert wrote[0] == wrote[1]
    for world, ranks in run(SCRIPT, "loaded", (1, 4), tmp_path).items():
        for kind in KINDS:
            for form in FORMS:
                assert {rank[f"{kind} {form}"] for rank in ranks} == {wrote[0][kind]}, (world, kind, form)
                trained = {rank[f"{kind} {form}, trained"] for rank in ranks}
                assert len(trained) == 1
                assert trained != {wrote[0][kind]}
    for kind in KINDS:
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        tq.load_checkpoint(tmp_path / f"{kind}.file", model=model, optimizer=optimizer)
        assert digest(model, optimizer, own=False) == wrote[0][kind]
