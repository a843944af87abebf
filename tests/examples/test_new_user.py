"""A new user's path: a float training script of theirs becomes a trained Int8 model by five lines of the README's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import truequant as tq
from tests.scripts import script

ROOT = Path(__file__).parents[2]


def test_five_lines_make_a_trained_int8_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks/new_user.py` walks the whole path, from a fresh clone on, and records the seconds."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    path = script("new_user")
    assert len([line for line in path.FLOAT.splitlines() if line]) <= 60
    assert "truequant" not in path.FLOAT
    assert sum(lines.count("\n") for lines in path.ADDED.values()) <= 5
    readme = (ROOT / "README.md").read_text()
    for name in ("prepare", "calibrate", "convert", "verify", "save"):
        assert f"{name}(" in readme
    (tmp_path / "train.py").write_text(path.quantized_script())
    command, environment = [sys.executable, "train.py", "--epochs", "10"], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (last,) = re.findall(r"epoch 9: (\S+)", done.stdout)
    assert float(last) > 0.9
    assert len(re.findall(r"(?:reference|onnxruntime) +EXACT", done.stdout)) == 2
    assert "DIFFERENT" not in done.stdout
    assert tq.load(tmp_path / "model.tq").ops()["Conv"] == 5
