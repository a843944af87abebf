"""`truequant export`: the Int8 model as an ONNX file, proved on the installed runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import truequant as tq
from truequant.cli.deployed import show_files, writable
from truequant.cli.session import AsJson, session
from truequant.cli.tables import table
from truequant.runtimes import census

Int8File = Annotated[Path, typer.Argument(metavar="MODEL.tq", help="An Int8 model that truequant wrote.")]


def export(
    context: typer.Context,
    model: Int8File,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file.")] = Path("model.onnx"),
    form: Annotated[str, typer.Option(help="qdq: portable; qoperator: exact at every level of optimization.")] = "qdq",
    self_contained: Annotated[
        bool, typer.Option("--self-contained", help="Put the integer program inside, so that verify needs this file alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export an Int8 model as ONNX, after proving that the runtime computes it in integer kernels."""
    with session(context, as_json) as run:
        writable(out)
        size = tq.export_onnx(tq.load(model), out, form=form, program=self_contained)  # type: ignore[arg-type]
        kernels = census(out.read_bytes())
        show_files(run, {str(out): size})
        run.show(_kernels(kernels))
        run.result({"files": {str(out): size}, "kernels": kernels})


def _kernels(kernels: dict[str, int]) -> Table:
    shown = table("What onnxruntime runs", ("kernel", "nodes"), right=("nodes",))
    for name, count in sorted(kernels.items(), key=lambda item: -item[1]):
        shown.add_row(name, str(count))
    return shown
