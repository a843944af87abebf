"""`truequant quantize`: post-training quantization in one command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

import truequant as tq
from truequant.calibration.method import Method
from truequant.cli.configs import DEFAULT_PRESET, ConfigFile, Preset, config_of
from truequant.cli.data import Batches, DataName, data_of, first_inputs, shown
from truequant.cli.deployed import deploy
from truequant.cli.inputs import ModelName, Shapes, example_inputs, float_model
from truequant.cli.session import AsJson, session
from truequant.errors import ArgumentError
from truequant.schemes import Entropy, Histogram, MinMax, Observation, Percentile

Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="The model's trained weights: safetensors, checkpoint, torch.save."),
]
Onnx = Annotated[Path | None, typer.Option("--onnx", metavar="FILE", help="Export there too, proved on the installed runtime.")]


def methods() -> dict[str, type[Method] | type[Observation]]:
    """What `--method` takes: `CrossLayerEqualization` is cross-layer-equalization, `MSE` is mse."""
    found: dict[str, type[Method] | type[Observation]] = {
        _words(kind.__name__): kind for kind in (MinMax, Percentile, tq.MSE, Entropy, Histogram)
    }
    public = (getattr(tq, name) for name in tq.__all__)
    return found | {_words(kind.__name__): kind for kind in public if isinstance(kind, type) and issubclass(kind, Method)}


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


def quantize(
    context: typer.Context,
    model: ModelName,
    data: DataName,
    weights: Weights = None,
    preset: Preset = DEFAULT_PRESET,
    config: ConfigFile = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="mse, percentile, cross-layer-equalization, bias-correction …: once for each, in order."),
    ] = None,
    shapes: Shapes = None,
    batches: Batches = 32,
    out: Annotated[Path, typer.Option("--out", "-o", help="The Int8 model.")] = Path("model.tq"),
    onnx: Onnx = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a trained model after training (PTQ): calibrate, convert, verify; write the Int8 model."""
    with session(context, as_json) as run:
        steps = [_method(name)() for name in method or ()]
        float_one, given = float_model(model, weights)
        source = data_of(data, "--data")
        if shapes:
            given = example_inputs(shapes)
        inputs = first_inputs(source.train, "--data") if given is None else given
        qat = tq.prepare(float_one, inputs, config_of(preset, config), inplace=True)
        tq.calibrate(qat, shown(source.train, "calibrating", batches, run.console), steps or None, progress=False)
        deploy(run, qat.eval(), out, onnx, source.test, batches)


def _method(name: str) -> type[Method] | type[Observation]:
    known = methods()
    if name not in known:
        raise ArgumentError("--method: no such method", got=repr(name), expected=", ".join(known))
    return known[name]
