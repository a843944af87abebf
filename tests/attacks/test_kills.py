"""The short form of `tests.attacks.kills`; its long form's log lies in benchmarks/results/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_training_killed_four_times_ends_with_the_same_bits() -> None:
    command = [sys.executable, "-m", "tests.attacks.kills", "--kills", "4", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills" in done.stdout
    assert done.stdout.endswith(" 0 differences\n")
