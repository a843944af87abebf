"""`truequant init`: a commented recipe for `truequant train`, made from a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from truequant.cli.options import DEFAULT_PRESET, AsJson, ModelName, Preset, Shapes
from truequant.cli.session import session
from truequant.errors import ArgumentError

if TYPE_CHECKING:
    from truequant.planning import Plan

_TEXT = """\
# Quantization-aware training with truequant:  truequant train {name}
# A name of Python code is MODULE:NAME, looked up from the working directory, or FILE.py:NAME. It is run.

[model]
factory = {factory}   # returns the float model, or (model, example inputs)
# arguments = {{ width = 64 }}     # keyword arguments of the factory
# Trained weights, unless the factory loads them: safetensors, a checkpoint, a torch.save state_dict.
# weights = "float.safetensors"
{inputs}
[data]
# Returns batches, (train, test), or {{"train": …, "test": …}}; a batch is (inputs, targets).
factory = {data}
# arguments = {{}}
calibration_batches = 16         # set the first ranges

[quantization]                   # the same keys as QConfig.from_file
preset = {preset}                # int8 (exact and fast on any x86), w8a8, w4a8, w4a4, w3a3, w2a2, w1a1
# target = "onnxruntime"
# observer = "mse"               # min-max, moving-average, histogram, percentile, entropy
{layers}
# [[quantization.rule]]
# select = {last}                # a name, a glob (* within a level, ** across), or a call site
# float = true                   # or: weight = {{ dtype = "int4", scale = "lsq" }}

[training]
epochs = 2                       # or: steps = 1000
loss = "cross-entropy"           # "mse", or MODULE:NAME of a function (outputs, targets) -> loss
optimizer = "sgd"                # "adam", "adamw"
learning_rate = 0.01             # about a tenth of where float training began
learning_rate_schedule = "cosine"  # "constant"
momentum = 0.9
weight_decay = 0.0
# clip_gradient = 1.0
seed = 0
device = "cpu"

[schedule]                       # in steps
observe = 0                      # activation ranges follow the data from here on
# freeze_ranges_at = 800         # ranges are held from here on
# freeze_batchnorm_at = 800      # BatchNorm keeps its statistics from here on
# bits = {{ 0 = 4, 400 = 2 }}      # narrow quantizers start with more bits

# [distillation]                 # the float model as it was teaches
# weight = 1.0
# temperature = 1.0

[output]
folder = "run"                   # gets checkpoints/, model.tq, model.onnx
checkpoint_every = 500           # steps
keep = 3                         # so many newest checkpoints, and the best one
best = "loss"                    # of training since the last checkpoint; "test-loss", "none"
onnx = true
verify_batches = 8
"""


def init(
    context: typer.Context,
    model: ModelName,
    data: Annotated[str, typer.Option("--data", metavar="MODULE:FACTORY", help="What makes the batches.")] = "my_data:make",
    shapes: Shapes = None,
    preset: Preset = DEFAULT_PRESET,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file.")] = Path("truequant.toml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented TOML file for truequant train, with the layers of your model in it."""
    with session(context, as_json) as run:
        from truequant.cli.data import data_of, first_inputs
        from truequant.cli.deployed import writable
        from truequant.cli.inputs import example_inputs, float_model
        from truequant.cli.recipe import read_recipe
        from truequant.files import atomic_write
        from truequant.planning import plan

        writable(out)
        if out.exists() and not force:
            raise ArgumentError(f"'{out}' is there already", fix="--force writes over it, --out FILE names another")
        made, inputs = float_model(model)
        if shapes:
            inputs = example_inputs(shapes)
        elif inputs is None:
            inputs = first_inputs(data_of(data, "--data, for example inputs without --input").train, "--data")
        text = recipe_text(model, data, preset, shapes, plan(made, inputs, preset), out.name)
        atomic_write(out, text.encode())
        read_recipe(out)
        run.show(f"wrote {out}; next: truequant train {out}")
        run.result({"file": str(out)})


def recipe_text(model: str, data: str, preset: str, shapes: list[str] | None, decided: Plan, name: str) -> str:
    """The file's text. TOML's strings are JSON's."""
    layers = [site.name for site in decided.sites if site.weight is not None or site.weights]
    listed = "\n".join(f"#   {layer}" for layer in layers)
    inputs = (
        f"inputs = {json.dumps(shapes)}   # example inputs\n"
        if shapes
        else '# inputs = ["8x3x32x32"]        # else those of the first batch\n'
    )
    last = json.dumps(layers[-1] if layers else "name")
    return _TEXT.format(
        name=name, factory=json.dumps(model), data=json.dumps(data), preset=json.dumps(preset), inputs=inputs,
        layers=f"# Layers with weights, for rules:\n{listed}" if layers else "", last=last,
    )  # fmt: skip
