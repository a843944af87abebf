"""`truequant convert`: a checkpoint of a training becomes the Int8 model."""

from __future__ import annotations

from pathlib import Path

import typer

from truequant.cli.options import AsJson, CheckpointFile, Int8Out, ModelOption, Onnx
from truequant.cli.session import session


def convert(
    context: typer.Context,
    checkpoint: CheckpointFile,
    model: ModelOption,
    out: Int8Out = Path("model.tq"),
    onnx: Onnx = None,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint of quantization-aware training into the Int8 model, and export it if asked."""
    with session(context, as_json) as run:
        from truequant.cli.deployed import deploy
        from truequant.cli.inputs import trained_model

        deploy(run, trained_model(checkpoint, model)[0], out, onnx, None, 0)
