"""Every example runs, in a short form."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = {
    "mnist.py": ["--steps", "4", "--test", "500"],
    "resnet_own_loop.py": ["--steps", "2", "--test", "500"],
    "transformer_text.py": ["--steps", "2", "--limit", "40"],
    "lightning_mnist.py": ["--steps", "2", "--test", "500"],
    "hf_trainer.py": ["--steps", "2", "--limit", "40"],
    "accelerate_loop.py": ["--steps", "2"],
    "deploy_onnxruntime.py": [],
}
ELSEWHERE = {"cifar10.py", "cifar10_resnet20.py"}
"""Run by test_cifar10.py, on small files that it makes."""
VERIFIED = re.compile(r"^(reference|onnxruntime) +EXACT", re.MULTILINE)


def run(name: str, arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what frameworks warn of is theirs
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_all_are_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHORT) | ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(name, SHORT[name], tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    if name == "deploy_onnxruntime.py":
        assert printed.startswith("0 of 640 logits differ")
    else:
        assert VERIFIED.search(printed)
        assert "DIFFERENT" not in printed
    if name == "resnet_own_loop.py":  # the checkpoint of the first run
        run(name, ["--steps", "2", "--test", "500"], tmp_path, monkeypatch)
        assert "goes on at step 2" in capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(EXAMPLES / "debug_a_layer.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    (code,) = [cell for cell in notebook.cells if "STEPS = 300" in cell.source]
    code.source = code.source.replace("STEPS = 300", "STEPS = 40\ntest, test_labels = test[:300], test_labels[:300]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": EXAMPLES.parent}}
        ).execute()
    printed = "\n".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    (quantized,) = re.findall(r"float [\d.]+ %, quantized ([\d.]+) %", printed)
    (mended,) = re.findall(r"hidden with a scale a channel: ([\d.]+) %", printed)
    assert float(mended) > float(quantized)
    assert "EXACT" in printed
