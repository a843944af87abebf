"""`truequant export`: the Int8 model as an ONNX file, proved on the installed runtime, or as a program of torch.export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import truequant as tq
from truequant.cli.options import FORMS, AsJson, Int8File, one_of
from truequant.cli.session import session
from truequant.cli.tables import table

if TYPE_CHECKING:
    from truequant.runtimes import Lint


def export(
    context: typer.Context,
    model: Int8File,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file.")] = Path("model.onnx"),
    form: Annotated[
        str,
        typer.Option(
            help="qdq: portable; qoperator: exact at every level; openvino; tflite: for LiteRT; torch.export: for ExecuTorch.",
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
        int8 = tq.load(model)
        if form == "tflite":
            size = tq.export_tflite(int8, out)
            show_files(run, {str(out): size})
            run.result({"files": {str(out): size}})
            return
        size = tq.export_onnx(int8, out, form=form, program=self_contained)  # type: ignore[arg-type]
        kernels = census(out.read_bytes(), folder=str(out.parent))
        show_files(run, {str(out): size})
        run.show(_counted("What onnxruntime runs", "kernel", kernels))
        found: dict[str, Any] = {"files": {str(out): size}, "kernels": kernels}
        if form != "openvino":
            missed = tq.lint(int8, form=form)  # type: ignore[arg-type]
            run.show(*_missed(missed))
            found["lint"] = missed.to_dict()
        run.result(found)


def _missed(found: Lint) -> list[Table | str]:
    """What does not fuse, a row for each kind of reason."""
    if not found.missed:
        return ["every node is an integer kernel, and no fusion is missed"]
    rows: dict[tuple[str, str, str], list[str]] = {}
    for miss in found.missed:
        rows.setdefault((miss.runs, miss.why, miss.fix), []).append(miss.node)
    shown = table("What does not fuse", ("at", "runs instead", "because", "what helps"), ratios=(4, 4, 5, 5))
    for (runs, why, fix), nodes in rows.items():
        names = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
        shown.add_row(names, runs, why, fix)
    return [shown]


def _counted(title: str, what: str, counts: Mapping[str, int]) -> Table:
    shown = table(title, (what, "nodes"), right=("nodes",))
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        shown.add_row(name, str(count))
    return shown
