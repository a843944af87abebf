"""The TOML file of `truequant train`, as a schema: whatever is not in it is named, with what was probably meant."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from truequant.errors import ArgumentError
from truequant.schemes import LARGEST_FILE, QConfig, config_from_table
from truequant.training import QATSchedule


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    """What is trained. factory: MODULE:NAME, called with `arguments`; weights: a file of its float weights."""

    factory: str
    arguments: dict[str, Any] = {}
    weights: str | None = None
    inputs: list[str] = []


class DataSection(Section):
    """What it is trained on. factory: returns batches, (train, test), or a dict of both."""

    factory: str
    arguments: dict[str, Any] = {}
    calibration_batches: int = Field(default=16, ge=1)


class TrainingSection(Section):
    """How. Either `epochs` or `steps`; loss: "cross-entropy", "mse" or MODULE:NAME of a function (outputs, targets)."""

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    loss: str = "cross-entropy"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0)
    learning_rate_schedule: Literal["cosine", "constant"] = "cosine"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_gradient: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    device: str = "cpu"


class ScheduleSection(Section):
    """`tq.training.QATSchedule`, in steps."""

    observe: int = Field(default=0, ge=0)
    freeze_ranges_at: int | None = Field(default=None, ge=0)
    freeze_batchnorm_at: int | None = Field(default=None, ge=0)
    bits: dict[str, int] = {}

    def made(self) -> QATSchedule:
        """The schedule. TOML's keys are strings: `bits = { 0 = 4, 1000 = 2 }`."""
        if not all(step.isdecimal() for step in self.bits):
            raise ArgumentError("schedule.bits: a key is no step", got=repr(self.bits), expected="bits = { 0 = 4, 1000 = 2 }")
        bits = {int(step): width for step, width in self.bits.items()} or None
        return QATSchedule(self.observe, self.freeze_ranges_at, self.freeze_batchnorm_at, bits=bits)


class DistillationSection(Section):
    """`tq.training.Distillation` from the float model as it was before, or from a teacher of its own. weight: of its term."""

    weight: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    features: dict[str, float] = {}
    teacher: str | None = None
    teacher_weights: str | None = None


class OutputSection(Section):
    """Where to. folder: gets checkpoints/, model.tq, model.onnx. keep: so many newest checkpoints, and the best one, by the
    mean loss of training since the last checkpoint, or by the loss on the test batches.
    """

    folder: str = "run"
    checkpoint_every: int = Field(default=500, ge=1)
    keep: int = Field(default=3, ge=1)
    best: Literal["loss", "test-loss", "none"] = "loss"
    onnx: bool = True
    verify_batches: int = Field(default=8, ge=1)


class Recipe(Section):
    """The whole file. quantization: the keys of `QConfig.from_file`."""

    model: ModelSection
    data: DataSection
    quantization: dict[str, Any] = {}
    training: TrainingSection = TrainingSection()
    schedule: ScheduleSection = ScheduleSection()
    distillation: DistillationSection | None = None
    output: OutputSection = OutputSection()

    def config(self, where: str) -> QConfig:
        """The config of [quantization]."""
        return config_from_table(self.quantization, f"{where}: quantization")


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file. `ArgumentError` naming file, key, what was got and what is probably meant."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ArgumentError(f"'{path}' is too large for a recipe", got=f"{path.stat().st_size:,} bytes")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArgumentError(f"there is no file '{path}'", fix=f"truequant init MODULE:FACTORY --out {path}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ArgumentError(f"'{path}' cannot be read as TOML", got=f"{type(error).__name__}: {error}") from error
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        raise _explained(error, path) from None
    if (recipe.training.epochs is None) == (recipe.training.steps is None):
        raise ArgumentError(f"{path}: training: epochs or steps, one of them", fix="epochs = 2")
    recipe.config(str(path))
    try:
        recipe.schedule.made()
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error.what}", got=error.got, expected=error.expected) from error
    return recipe


def _explained(error: ValidationError, path: Path) -> ArgumentError:
    """One block for all that is wrong: the first in full, the others by name."""
    found = error.errors(include_url=False)
    first, *others = found
    where = ".".join(str(part) for part in first["loc"])
    more = f"; also wrong: {', '.join('.'.join(map(str, e['loc'])) for e in others[:8])}" if others else ""
    if first["type"] == "extra_forbidden":
        keys = _keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), keys, n=1, cutoff=0.5)
        fix = f"did you mean '{near[0]}'?" if near else None
        return ArgumentError(f"{path}: unknown key '{where}'{more}", expected=", ".join(keys), fix=fix)
    if first["type"] == "missing":
        return ArgumentError(f"{path}: '{where}' is missing{more}", fix="truequant init writes a complete file to start from")
    return ArgumentError(f"{path}: {where}: {first['msg']}{more}", got=repr(first["input"]))


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at a location."""
    kind: Any = Recipe
    for part in location:
        kind = next(k for k in (*get_args(kind.model_fields[part].annotation), kind.model_fields[part].annotation) if k)
    return list(kind.model_fields)
