"""Checkpoints of a training on several ranks: resumed to the same bits on as many, and loaded by one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import truequant as tq
from tests.parity.ranks_saved import Net, digest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_resume_to_the_same_bits_and_one_process_loads_them(tmp_path: Path, kind: str) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.parity.ranks_saved", kind, str(rank), "2", str(tmp_path)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [child.communicate(timeout=500)[0].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    told = [(tmp_path / f"told.{rank}").read_text().split() for rank in range(2)]
    for saved, restored, expected, resumed in told:
        assert restored == saved  # each rank's own running statistics too
        assert resumed == expected
    model = Net()
    with torch.no_grad():
        found = tq.CheckpointManager(tmp_path / "kept").restore(model=model)
    assert found is not None
    assert digest(model) == told[0][0]  # BatchNorm's running statistics are those of rank 0
    if kind == "fsdp":
        tq.load_checkpoint(tmp_path / "gathered.ckpt", model=model)
        assert digest(model) == told[0][2]
