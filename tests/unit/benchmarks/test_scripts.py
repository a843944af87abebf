"""Each benchmark runs alone, in its shortest form, and writes what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def run(tmp_path: Path, name: str, *options: str) -> dict[str, Any]:
    """The JSON that a script writes."""
    target = tmp_path / "result.json"
    command = [sys.executable, "-W", "ignore", f"benchmarks/{name}.py", "--threads", "1", "--json", str(target), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(target.read_text())
    assert found["benchmark"] == name
    assert found["machine"]["threads"] == 1
    return found


@pytest.mark.slow
def test_a_step(tmp_path: Path) -> None:
    found = run(tmp_path, "qat_step", "LeNet", "--batch", "2", "--seconds", "0", "--rounds", "2", "--peers", "torch.ao FX")
    [row] = found["rows"]
    assert (row["model"], row["batch"], row["quantizers"]) == ("LeNet", 2, 9)
    assert {name: found["different"] for name, found in row["codes"].items()} == {"reference": 0, "onnxruntime": 0}
    assert all(found["compared"] > 0 for found in row["codes"].values())
    assert row["ratios"]["float"] == 1.0
    assert set(row["seconds"]) == {"float", "truequant", "torch.ao FX"}


@pytest.mark.slow
def test_kernels(tmp_path: Path) -> None:
    rows = run(tmp_path, "fake_quantize", "--megabytes", "0.5", "--seconds", "0", "--places", "1")["rows"]
    assert {r["pass"] for r in rows} == {"forward", "backward"}
    assert all(r["share"] > 0 for r in rows)


@pytest.mark.slow
def test_one_op_between_two_layers(tmp_path: Path) -> None:
    [row] = run(tmp_path, "nodes", "bilinear, factor 2", "--quick", "--seconds", "0")["rows"]
    assert row["op"] == "bilinear, factor 2"
    assert row["16 px, batch 1"] > 0


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    [row] = run(tmp_path, "memory", "LeNet", "--batch", "8")["rows"]
    # Two convolutions and two linear layers, their inputs and results: what LeNet keeps is known to within its odds and ends.
    activations = 8 * 4 * (784 + 2 * 16 * 576 + 2 * 32 * 64 + 2 * 2304 + 2 * 512 + 2 * 128)
    assert 0.5 * activations < row["float"]["saved"] < 4 * activations
    assert row["float"]["held"] > 0
    assert row["saved"] > 0.9


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    rows = run(tmp_path, "scaling", "--quick", "--seconds", "0")["rows"]
    assert [r["along"] for r in rows] == ["threads", "batch", "batch", "depth", "depth"]
