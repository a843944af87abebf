"""Commands and options; what goes wrong on purpose becomes one readable block and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from truequant.demo import MODELS, DemoOptions, run_demo
from truequant.errors import TruequantError
from truequant.reports import stage_table, verification_table

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
Model = Enum("Model", {name: name for name in MODELS}, type=str)  # type: ignore[misc]  # the names live in one place
_DEFAULTS = DemoOptions()
_DEFAULT_MODEL = Model(_DEFAULTS.model)
_PRESET = "w8a8, w7a8, w4a4, w8a8-pow2 …: bits of weights and activations."


def main() -> None:
    """Entry point of `truequant` and of `python -m truequant`."""
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


@app.command()
def demo(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="Folder of MNIST's four idx files, gzipped or not.", show_default="the repository's")
    ] = None,
    model: Annotated[Model, typer.Option(help="Architecture.")] = _DEFAULT_MODEL,
    preset: Annotated[str, typer.Option(help=_PRESET)] = _DEFAULTS.preset,
    float_epochs: Annotated[int, typer.Option(min=1, help="Epochs of float training.")] = _DEFAULTS.float_epochs,
    qat_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of QAT, and extra epochs of the float model that it is compared with.")
    ] = _DEFAULTS.qat_epochs,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and shuffling.")] = _DEFAULTS.seed,
    out: Annotated[Path, typer.Option(help="Folder for model.tq, model.onnx, result.json, curves.png.")] = _DEFAULTS.out,
) -> None:
    """Train on MNIST, quantize, convert, export, and verify that nothing changed on the way."""
    console = Console()
    with readable_errors(debug=bool(context.obj)):
        result = run_demo(DemoOptions(data, model.value, preset, float_epochs, qat_epochs, seed, out), console)
    console.print()
    console.print(stage_table(list(result.stages.values()), f"{model.value}, {preset}: {result.test_images:,} test images"))
    console.print(verification_table(result.verification, "Every code of every edge, against QAT as evaluated"))
    console.print(f"wrote model.tq, model.onnx, result.json, curves.png into {out}/", highlight=False, soft_wrap=True)
    console.print(f"{result.seconds:.0f} s in all", highlight=False)
    if not result.identical:
        Console(stderr=True).print("The deployed model is not the validated one: see the table above.", style="bold red")
        raise typer.Exit(1)


@contextmanager
def readable_errors(debug: bool) -> Iterator[None]:
    """Turn an error of truequant into its message on stderr and exit code 2; `debug` lets its traceback through."""
    try:
        yield
    except TruequantError as error:
        if debug:
            raise
        message = Text.assemble((f"{type(error).__name__}: ", "bold red"), str(error))
        Console(stderr=True, soft_wrap=True).print(message, highlight=False)
        raise typer.Exit(2) from None
