"""The help of every command: it fits 80 columns, is whole, and says what exit codes mean."""

from __future__ import annotations

import inspect

import pytest
from typer.testing import CliRunner

from truequant.cli.app import COMMANDS, app

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


def test_shells_can_complete_commands_and_options() -> None:
    def completed(line: str, word: int) -> list[str]:
        environment = {"_TRUEQUANT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(word)}
        return CliRunner().invoke(app, [], env=environment, prog_name="truequant").output.split()

    assert completed("truequant ins", 1) == ["inspect"]
    assert "--preset" in completed("truequant inspect --p", 2)
