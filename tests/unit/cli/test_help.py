"""The help of every command: it fits 80 columns, is whole, and says what exit codes mean."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

import truequant as tq
from truequant.analysis.report import REQUIREMENTS
from truequant.cli import options
from truequant.cli.app import COMMANDS, app
from truequant.cli.methods import methods
from truequant.cli.session import DIFFERENT, INTERRUPTED, TERMINATED, UNEXPECTED, WRONG
from truequant.runtimes import RUNTIMES

NAMES = [command.__name__ for command in COMMANDS]


@pytest.mark.parametrize("arguments", [[], *([name] for name in NAMES)], ids=lambda value: " ".join(value) or "truequant")
def test_help_fits_80_columns(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(line.rstrip(" │").endswith("…") for line in lines), "a cell was cut"
    assert "Exit codes: 0 done" in result.output


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_every_command_has_json_and_one_sentence(command: object) -> None:
    assert "as_json" in inspect.signature(command).parameters  # type: ignore[arg-type]
    text = inspect.getdoc(command)
    assert text is not None
    assert text.splitlines()[0].endswith(".")


def test_help_lists_the_commands_in_order() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    places = [output.index(f"│ {name} ") for name in NAMES]
    assert places == sorted(places)


def test_the_page_of_the_documentation_names_every_command_and_exit_code() -> None:
    page = (Path(__file__).parents[3] / "docs" / "command-line.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == NAMES
    codes = {number for row in re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE) for number in row.split(", ")}
    assert codes == {"0"} | {str(code) for code in (DIFFERENT, WRONG, UNEXPECTED, INTERRUPTED, TERMINATED)}


def test_shells_can_complete_commands_and_options() -> None:
    def completed(line: str, word: int) -> list[str]:
        environment = {"_TRUEQUANT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(word)}
        return CliRunner().invoke(app, [], env=environment, prog_name="truequant").output.split()

    assert completed("truequant ins", 1) == ["inspect"]
    assert "--preset" in completed("truequant inspect --p", 2)
    assert completed("truequant inspect m:f --preset w8a8-p", 4) == ["w8a8-per-tensor", "w8a8-pow2"]
    assert completed("truequant quantize m:f --method ada", 4) == ["ada-round"]
    assert completed("truequant verify m.tq --require EX", 4) == ["EXACT", "EXACT", "BETWEEN", "ISLANDS"]


def test_completing_and_helping_import_no_torch() -> None:
    code = (
        "import os, sys; from truequant.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )

    def run(*arguments: str, **environment: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout, done.stderr

    words = {"_TRUEQUANT_COMPLETE": "complete_bash", "COMP_WORDS": "truequant inspect --preset w3", "COMP_CWORD": "3"}
    assert run(**words) == ("w3a3\nw3a3-all\n", "False False\n")
    for name in ("", *NAMES):
        printed, modules = run(*([name] if name else []), "--help")
        assert ("Usage: truequant" in printed, modules) == (True, "False False\n"), name


def test_the_words_of_options_are_those_of_the_rooms() -> None:
    assert set(options.METHODS) == set(methods())
    assert set(options.RUNTIMES) == {"reference", *RUNTIMES}
    assert set(options.GRADES) < set(REQUIREMENTS)
    form = inspect.signature(tq.export_onnx, eval_str=True).parameters["form"]
    assert set(options.FORMS) - {"tflite", "torch.export"} == set(get_args(form.annotation))
