"""What every command shares: where it prints, and what becomes of an error.

Exit codes: 0 done; 1 the deployed model is not the validated one; 2 wrong arguments, files or data; 3 code of yours, or of
truequant, raised something unexpected; 130 interrupted from the keyboard, 143 ended by the system.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from truequant.errors import TruequantError

DIFFERENT, WRONG, UNEXPECTED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143
EXIT_CODES = (
    "Exit codes: 0 done · 1 the deployed model is not the validated one · 2 wrong arguments, files or data · "
    "3 unexpected error in your code or in truequant · 130 or 143 interrupted."
)


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a command. `console` is for people: with `--json` it is standard error, so that standard output is JSON."""

    console: Console
    as_json: bool

    def show(self, *parts: RenderableType) -> None:
        """For people only: nothing with `--json`."""
        if not self.as_json:
            for part in parts:
                self.console.print(part, highlight=False, soft_wrap=isinstance(part, str))

    def result(self, found: Mapping[str, Any]) -> None:
        """For programs only: the one object that `--json` prints."""
        if self.as_json:
            typer.echo(json.dumps(found, indent=2, allow_nan=False, default=str))


class Interrupted(Exception):
    """A command that was asked to stop, and stopped in good order; `code` is its exit code."""

    def __init__(self, message: str, code: int = INTERRUPTED, found: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.found = code, dict(found or {})


@contextmanager
def session(context: typer.Context, as_json: bool = False) -> Iterator[Session]:
    """A command's body: an error inside becomes one readable block on stderr and an exit code; `--debug` lets it through."""
    active = Session(Console(stderr=as_json), as_json)
    try:
        yield active
    except TruequantError as error:
        if context.obj:
            raise
        active.result({"error": _as_json(error)})
        _print_block(type(error).__name__, str(error))
        raise typer.Exit(WRONG) from None
    except Interrupted as stopped:
        active.result({"interrupted": True, **stopped.found})
        Console(stderr=True, soft_wrap=True).print(str(stopped), highlight=False)
        raise typer.Exit(stopped.code) from None
    except KeyboardInterrupt:
        if context.obj:
            raise
        Console(stderr=True).print("interrupted; nothing was written that is not whole")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        if context.obj:
            raise
        where = _place(error.__traceback__)
        active.result({"error": {"type": type(error).__name__, "what": str(error), "where": where}})
        what = str(error).strip() or "no message"
        _print_block(type(error).__name__, f"{what}\n  where:    {where}\n  fix:      truequant --debug … shows the traceback")
        raise typer.Exit(UNEXPECTED) from None


def _print_block(kind: str, message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{kind}: ", "bold red"), message), highlight=False)


def _as_json(error: TruequantError) -> dict[str, Any]:
    rows = {"got": error.got, "expected": error.expected, "fix": error.fix}
    return {"type": type(error).__name__, "what": error.what} | {k: str(v) for k, v in rows.items() if v is not None}


def _place(trace: TracebackType | None) -> str:
    """The innermost line of the user's own code, or of truequant where none of theirs was running."""
    frames = traceback.extract_tb(trace)
    ours = str(Path(__file__).resolve().parents[1])
    installed = (ours, str(Path(os.__file__).parent), "site-packages", "dist-packages", "<")
    theirs = [f for f in frames if not any(part in f.filename for part in installed)]
    inside = [f for f in frames if f.filename.startswith(ours)]
    last = (theirs or inside or list(frames))[-1]
    return f"{last.filename}, line {last.lineno}, in {last.name}"
