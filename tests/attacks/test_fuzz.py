"""The short form of `tests.attacks.fuzz`, and hypothesis on the same readers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import truequant as tq
from tests.attacks.readers import Reader
from tests.attacks.readers import readers as all_readers
from truequant.errors import TruequantError
from truequant.schemes import QConfig

ROOT = Path(__file__).resolve().parents[2]
READERS = ("checkpoint", "restore", "model.tq", "plan", "config JSON", "config TOML", "idx")


@pytest.mark.slow
def test_hostile_inputs_end_in_our_exceptions(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "tests.attacks.fuzz", "--inputs", "2500", "--seed", "11", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    result = json.loads(out.read_text())
    assert (done.returncode, result["escapes"]) == (0, 0), result["escaped"] or done.stderr
    assert set(result["readers"]) == set(READERS)
    assert all(sum(counts.values()) > 20 for counts in result["readers"].values())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs requirements/optional/atheris.txt")
def test_inputs_guided_by_coverage_end_in_our_exceptions(tmp_path: Path) -> None:
    out = tmp_path / "guided.json"
    command = [sys.executable, "-m", "tests.attacks.guided", "--runs", "400", "--seed", "5", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    result = json.loads(out.read_text())
    assert (done.returncode, result["escapes"]) == (0, 0), result["escaped"] or done.stderr
    assert set(result["readers"]) == set(READERS)


def test_without_atheris_its_script_says_what_is_missing() -> None:
    hide = "import sys; sys.modules['atheris'] = None; sys.argv = ['guided']; from tests.attacks.guided import main; main()"
    done = subprocess.run([sys.executable, "-c", hide], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "pip install -r requirements/optional/atheris.txt" in done.stderr


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Reader], Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    return all_readers(folder), folder / "input"


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_bytes_put_in_anywhere(readers: tuple[dict[str, Reader], Path], name: str, data: st.DataObject) -> None:
    known, path = readers
    seed = data.draw(st.sampled_from(known[name].seeds))
    at = data.draw(st.integers(0, len(seed)))
    cut = data.draw(st.integers(0, 16))
    path.write_bytes(seed[:at] + data.draw(st.binary(max_size=24)) + seed[at + cut :])
    with contextlib.suppress(TruequantError):
        known[name].read(path)


@pytest.mark.parametrize("name", READERS)
def test_honest_files_of_these_tests_are_read(readers: tuple[dict[str, Reader], Path], name: str) -> None:
    known, path = readers
    seeds = known[name].seeds
    for seed in seeds if name != "idx" else seeds[:2]:
        path.write_bytes(seed)
        known[name].read(path)


@pytest.mark.parametrize("text", ["preset = {}", f"preset = {'9' * 900}", f"{'a.' * 3000}b = 1", "weight = { dtype = [] }"])
def test_configs_that_once_escaped(tmp_path: Path, text: str) -> None:
    path = tmp_path / "q.toml"
    path.write_text(text)
    with pytest.raises(TruequantError, match=r"q\.toml|no integer type|no preset"):
        QConfig.from_file(path)


def test_a_number_of_many_digits_makes_no_long_message(tmp_path: Path) -> None:
    """Found by coverage: a plan whose integer type reaches from 111… on, in a message of 4082 characters."""
    plan = tq.plan(nn.Linear(4, 3), torch.zeros(2, 4))
    text = plan.to_json().replace('"qmin":0', f'"qmin":{"1" * 4000}')
    with pytest.raises(TruequantError, match=r"no integer type of truequant\n  got: .* … \(4\d+ characters\)\n") as caught:
        tq.Plan.from_json(text)
    assert len(str(caught.value)) < 1500
