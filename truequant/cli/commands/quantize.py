"""`truequant quantize`: post-training quantization in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import truequant as tq
from truequant.cli.options import (
    DEFAULT_PRESET,
    METHODS,
    AsJson,
    Batches,
    ConfigFile,
    DataName,
    Int8Out,
    ModelName,
    Onnx,
    Preset,
    Shapes,
    Weights,
    config_of,
    one_of,
)
from truequant.cli.session import session


def quantize(
    context: typer.Context,
    model: ModelName,
    data: DataName,
    weights: Weights = None,
    preset: Preset = DEFAULT_PRESET,
    config: ConfigFile = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="mse, percentile, cross-layer-equalization, bias-correction …: once for each, in order.",
            autocompletion=one_of(METHODS),
        ),
    ] = None,
    shapes: Shapes = None,
    batches: Batches = 32,
    out: Int8Out = Path("model.tq"),
    onnx: Onnx = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a trained model after training (PTQ): calibrate, convert, verify; write the Int8 model."""
    with session(context, as_json) as run:
        from truequant.cli.data import data_of, first, first_inputs
        from truequant.cli.deployed import deploy, exportable, writable
        from truequant.cli.inputs import RANDOM, draws_weights, example_inputs, float_model
        from truequant.cli.methods import method_named

        steps = [method_named(name) for name in method or ()]
        writable(out, onnx)
        float_one, given = float_model(model, weights)
        if weights is None and draws_weights(float_one, model):
            run.show(f"[yellow]{RANDOM}: --weights FILE.[/]")
        source = data_of(data, "--data")
        if shapes:
            given = example_inputs(shapes)
        inputs = first_inputs(source.train, "--data") if given is None else given
        qat = tq.prepare(float_one, inputs, config_of(preset, config), inplace=True)
        if onnx is not None:
            exportable(qat, "leave out --onnx: model.tq holds it")
        tq.calibrate(qat, first(source.train, batches), steps or None)
        deploy(run, qat.eval(), out, onnx, source.test, batches)
