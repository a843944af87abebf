"""`truequant report`: one HTML page about a trained or calibrated model."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

import truequant as tq
from truequant.cli.commands.verify import trained_model
from truequant.cli.data import Batches, DataName, data_of
from truequant.cli.session import AsJson, session


def report(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The training's checkpoint.")],
    model: Annotated[
        str, typer.Option(metavar="MODULE:FACTORY", help="What makes the checkpoint's float model; its code is run.")
    ],
    data: DataName,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("report.html"),
    before: Annotated[Path | None, typer.Option(metavar="FILE", help="An earlier page to compare with.")] = None,
    title: Annotated[str, typer.Option(help="What stands at its head.")] = "",
    batches: Batches = 8,
    as_json: AsJson = False,
) -> None:
    """Write one page: summary, model map, every quantizer's values and grid, what stays float and why.

    It needs no network, and a browser is all that opens it.
    """
    with session(context, as_json) as run:
        qat = trained_model(checkpoint, model)
        items = list(islice(data_of(data, "--data").test, batches))
        int8 = tq.convert(qat)
        found = tq.verify(qat, int8, items)
        size = tq.report(out, qat, items, title=title, verification=found, int8=int8, before=before)
        run.show(f"wrote {out}, {size / 1e6:.2f} MB")
        run.result({"files": {str(out): size}, "verification": found.to_dict()})
