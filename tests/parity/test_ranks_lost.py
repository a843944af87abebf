"""A rank that dies: the others fail, soon and with a word, and torchrun goes on from the last checkpoint to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "tests.parity.ranks_lost"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
FRESH_STORE = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it, ranks that are started again find the addresses of those before them in torchrun's store, and do not connect."""
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["ddp", "ranges"])
def test_the_others_fail_when_a_rank_dies(kind: str, tmp_path: Path) -> None:
    (tmp_path / "kind").write_text(kind)
    command = [sys.executable, "-m", SCRIPT, "died", "2", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "died on 2 ranks: exit codes" in done.stderr
    seconds, error, *message = (tmp_path / "told").read_text().split("\n")
    assert float(seconds) < 30
    if kind == "ranges":
        assert error == "StateError"
        assert message[0] == "rank 0: what 2 ranks observed cannot be merged"
        assert "torchrun" in message[-1]


def test_torchrun_goes_on_from_the_last_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    told = {}
    for how in ("dies", "lives"):
        folder = tmp_path / how
        folder.mkdir()
        command = [*TORCHRUN, "-m", SCRIPT, "restarted", str(folder), how]
        done = subprocess.run(command, cwd=ROOT, env=FRESH_STORE, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        told[how] = [(folder / f"told.{rank}").read_text().split() for rank in range(2)]
    assert [life for life, _, _ in told["dies"]] == ["1", "1"]
    assert [step for _, step, _ in told["dies"]] == ["4", "4"]
    assert [life for life, _, _ in told["lives"]] == ["0", "0"], done.stderr[-4000:]
    assert [bits for _, _, bits in told["dies"]] == [bits for _, _, bits in told["lives"]]
