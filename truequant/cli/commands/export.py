"""`truequant export`: the Int8 model as an ONNX file, proved on the installed runtime, or as a program of torch.export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import truequant as tq
from truequant.cli.options import FORMS, AsJson, Int8File, one_of
from truequant.cli.session import session
from truequant.cli.tables import table


def export(
    context: typer.Context,
    model: Int8File,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file.")] = Path("model.onnx"),
    form: Annotated[
        str,
        typer.Option(
            help="qdq: portable; qoperator: exact at every level; openvino; torch.export: not ONNX, for ExecuTorch.",
            autocompletion=one_of(FORMS),
        ),
    ] = "qdq",
    self_contained: Annotated[
        bool, typer.Option("--self-contained", help="Put the integer program inside, so that verify needs this file alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export an Int8 model as ONNX, after proving that the runtime computes it in integer kernels, or for ExecuTorch."""
    with session(context, as_json) as run:
        from truequant.cli.deployed import show_files, writable
        from truequant.runtimes import census

        writable(out)
        if form == "torch.export":
            made = tq.export_program(tq.load(model), out)
            size = out.stat().st_size
            show_files(run, {str(out): size})
            ops = Counter(str(node.target) for node in made.graph.nodes if node.op == "call_function")
            run.show(_counted("What the program holds", "op", ops))
            run.result({"files": {str(out): size}, "ops": ops})
            return
        size = tq.export_onnx(tq.load(model), out, form=form, program=self_contained)  # type: ignore[arg-type]
        kernels = census(out.read_bytes())
        show_files(run, {str(out): size})
        run.show(_counted("What onnxruntime runs", "kernel", kernels))
        run.result({"files": {str(out): size}, "kernels": kernels})


def _counted(title: str, what: str, counts: Mapping[str, int]) -> Table:
    shown = table(title, (what, "nodes"), right=("nodes",))
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        shown.add_row(name, str(count))
    return shown
