"""The command line: options reach the demo, and what goes wrong is one readable block."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import truequant.demo
from truequant.analysis import RuntimeReport, Verification
from truequant.cli import app as cli
from truequant.cli.commands.demo import Model
from truequant.demo import MODELS, DemoOptions, DemoResult
from truequant.errors import DataError
from truequant.reports import Cpu, Stage

RESULT = DemoResult(
    options=DemoOptions(),
    stages={name: Stage(name, 99.0, 1000, {1: 0.001}) for name in ("float", "ptq", "qat", "int8", "onnxruntime")},
    ptq_observer="MSE",
    verification=Verification({"reference": RuntimeReport(10), "onnxruntime": RuntimeReport(10)}),
    test_images=10,
    genuine_data=True,
    seconds=12.3,
    versions={},
    cpu=Cpu("a CPU", 2, ()),
)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"truequant {version('truequant')}\n")


def test_the_module_and_the_entry_point_are_the_same_command() -> None:
    (script,) = entry_points(group="console_scripts", name="truequant")
    assert script.load() is cli.main
    run = subprocess.run([sys.executable, "-m", "truequant", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"truequant {version('truequant')}\n"


def test_without_a_command_it_shows_its_help() -> None:
    assert "demo" in invoke().output


def test_the_demo_says_what_it_will_do_before_torch_is_loaded() -> None:
    code = "import sys; sys.modules['torch'] = None; from truequant.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code, "demo", "--qat-epochs", "0"], capture_output=True, text=True)
    assert "lenet on MNIST: 3 epochs of training, float and quantization-aware; then Int8 and ONNX files" in run.stdout
    assert "takes one to three minutes on two free cores" in run.stdout
    assert run.returncode == 3  # and then there was no torch to be loaded
    assert "ModuleNotFoundError" in run.stderr


def test_options_reach_the_demo_and_its_tables_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DemoOptions] = []

    def run_demo(options: DemoOptions, console: Console) -> DemoResult:
        seen.append(options)
        return RESULT

    monkeypatch.setattr(truequant.demo, "run_demo", run_demo)
    trained = ["--data", "d", "--model", "mlp", "--preset", "w4a4", "--float-epochs", "7", "--qat-epochs", "0"]
    result = invoke("demo", *trained, "--seed", "3", "--out", "o")
    assert seen == [DemoOptions(Path("d"), "mlp", "w4a4", 7, 0, 3, Path("o"))]
    assert result.exit_code == 0
    assert "mlp, w4a4: 10 test images" in result.stdout
    assert "99.00 %" in result.stdout
    assert "Every code of every edge" in result.stdout
    assert "wrote model.tq, model.onnx, result.json, curves.png into o/\n12 s in all" in result.stdout
    seen.clear()
    invoke("demo")
    assert seen == [DemoOptions()]
    assert [model.value for model in Model] == list(MODELS)


def test_a_difference_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    different = replace(RESULT, verification=Verification({"onnxruntime": RuntimeReport(10, 1, 1)}))
    monkeypatch.setattr(truequant.demo, "run_demo", lambda options, console: different)
    result = invoke("demo")
    assert result.exit_code == 1
    assert "The deployed model is not the validated one" in result.stderr


def fail(options: DemoOptions, console: Console) -> DemoResult:
    raise DataError("'x.gz' is damaged [sic]", got="5 bytes", expected="6", fix="copy it again")


def test_an_error_is_one_block_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truequant.demo, "run_demo", fail)
    result = invoke("demo")
    assert result.exit_code == 2
    assert result.stdout.startswith("lenet on MNIST: ")
    assert result.stdout.count("\n") == 1
    assert result.stderr == (
        "DataError: 'x.gz' is damaged [sic]\n  got:      5 bytes\n  expected: 6\n  fix:      copy it again\n"
    )


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truequant.demo, "run_demo", fail)
    assert isinstance(invoke("--debug", "demo").exception, DataError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--model", "vgg"], ["--model", "'vgg'", "'lenet'"]),
        (["demo", "--float-epochs", "0"], ["--float-epochs"]),
        (["demo", "--qat-epochs", "-1"], ["--qat-epochs"]),
        (["demo", "--seed", "x"], ["--seed"]),
        (["train"], ["train"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_arguments_are_exit_code_2(arguments: list[str], words: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert all(word in result.stderr for word in words)
