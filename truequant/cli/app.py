"""The command line: its commands, each a file of `truequant.cli.commands`, under one name."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Annotated

import typer

from truequant.cli.commands.benchmark import benchmark
from truequant.cli.commands.convert import convert
from truequant.cli.commands.demo import demo
from truequant.cli.commands.doctor import doctor
from truequant.cli.commands.export import export
from truequant.cli.commands.init import init
from truequant.cli.commands.inspect import inspect
from truequant.cli.commands.quantize import quantize
from truequant.cli.commands.report import report
from truequant.cli.commands.train import train
from truequant.cli.commands.verify import verify
from truequant.cli.session import EXIT_CODES
from truequant.cli.waiting import waiting

COMMANDS = (demo, inspect, init, train, quantize, convert, export, verify, report, benchmark, doctor)
"""In the order of `truequant --help`."""
app = typer.Typer(
    name="truequant", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES,
)  # fmt: skip
for command in COMMANDS:
    app.command(epilog=EXIT_CODES)(command)


def main() -> None:
    """Entry point of `truequant` and of `python -m truequant`."""
    os.environ.update(waiting(os.environ))  # no command has loaded torch yet
    app(prog_name="truequant")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"truequant {version('truequant')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Quantization-aware training whose Int8 model is bit for bit the model you validated."""
    context.obj = debug
