"""`truequant convert`: a checkpoint of a training becomes the Int8 model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import truequant as tq
from truequant.cli.commands.quantize import Onnx
from truequant.cli.deployed import deploy
from truequant.cli.inputs import float_model
from truequant.cli.session import AsJson, session
from truequant.errors import ArgumentError

CheckpointFile = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Written by tq.save_checkpoint or truequant train.")]
ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODULE:FACTORY", help="What makes the float model that was trained; its code is run.")
]


def convert(
    context: typer.Context,
    checkpoint: CheckpointFile,
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="The Int8 model.")] = Path("model.tq"),
    onnx: Onnx = None,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint of quantization-aware training into the Int8 model, and export it if asked."""
    with session(context, as_json) as run:
        made, _ = float_model(model)
        found = tq.load_checkpoint(checkpoint, model=made, restore_random=False)
        if found.kind != "qat":
            raise ArgumentError(
                f"'{checkpoint}' is no checkpoint of quantization-aware training",
                got=f"a {found.kind} checkpoint",
                fix="truequant quantize MODULE:FACTORY --weights FILE quantizes a float model",
            )
        deploy(run, made.eval(), out, onnx, None, 0)
