"""`truequant report`: one HTML page about a trained or calibrated model, and its plots as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import truequant as tq
from truequant.cli.options import AsJson, Batches, CheckpointFile, DataName, ModelOption
from truequant.cli.session import session


def report(
    context: typer.Context,
    checkpoint: CheckpointFile,
    model: ModelOption,
    data: DataName,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write its plots there too, as pictures for terminals and papers.")
    ] = None,
    before: Annotated[Path | None, typer.Option(metavar="FILE", help="An earlier page to compare with.")] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Rank the quantizers by what each alone costs: two passes for each.")
    ] = False,
    title: Annotated[str, typer.Option(help="What stands at its head.")] = "",
    batches: Batches = 8,
    as_json: AsJson = False,
) -> None:
    """Write one page: summary, model map, every quantizer's values and grid, what stays float and why.

    It needs no network, and a browser is all that opens it.
    """
    with session(context, as_json) as run:
        from truequant.cli.data import data_of, first
        from truequant.cli.deployed import writable
        from truequant.cli.inputs import trained_model
        from truequant.cli.stages import stages_of
        from truequant.reports import picture_files, read_report

        writable(out)
        qat, found = trained_model(checkpoint, model)
        items = list(first(data_of(data, "--data").test, batches))
        int8 = tq.convert(qat)
        checked = tq.verify(qat, int8, items)
        history = found.extra.get("history") if isinstance(found.extra, dict) else None
        size = tq.report(
            out, qat, items, title=title, stages=stages_of(qat, int8, items), verification=checked, int8=int8, history=history,
            sensitivity=tq.sensitivity(qat, items) if sensitivity else None, before=before,
        )  # fmt: skip
        files = {str(out): size} | ({} if png is None else picture_files(png, read_report(out)))
        for name, written in files.items():
            run.show(f"wrote {name}, {written / 1e6:.2f} MB" if written >= 1e5 else f"wrote {name}, {written / 1e3:.0f} kB")
        run.result({"files": files, "verification": checked.to_dict()})
