"""`truequant train`: quantization-aware training from a TOML file, to the verified Int8 model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

import truequant as tq
from truequant.cli.data import Data, data_of, first_inputs, shown
from truequant.cli.deployed import deploy
from truequant.cli.inputs import example_inputs, float_model
from truequant.cli.losses import accuracy, loss_named
from truequant.cli.recipe import Recipe, TrainingSection, read_recipe
from truequant.cli.session import AsJson, Interrupted, Session, session
from truequant.cli.stopping import Stopping
from truequant.errors import ArgumentError
from truequant.planning import as_arguments
from truequant.reports.progress import training_progress
from truequant.training import Position, seed_random, training_steps

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to train, on what, how (see truequant init).")]


def train(
    context: typer.Context,
    recipe: RecipeFile,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the recipe's folder.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Train so many steps in all, whatever the recipe says.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train with quantization from a TOML file; convert, export and verify what came out.

    Ctrl-C finishes the step, saves a checkpoint, and says how to resume.
    """
    with session(context, as_json) as run:
        _Training(read_recipe(recipe), recipe, steps, run).go(resume)


class _Training:
    """What a run holds: everything that the recipe names, made."""

    def __init__(self, recipe: Recipe, path: Path, steps: int | None, run: Session) -> None:
        self.recipe, self.path, self.run = recipe, path, run
        self.folder = Path(recipe.output.folder)
        self.checkpoint = self.folder / "last.ckpt"
        seed_random(recipe.training.seed)
        weights = None if recipe.model.weights is None else Path(recipe.model.weights)
        model, given = float_model(recipe.model.factory, weights, recipe.model.arguments)
        self.data = data_of(recipe.data.factory, "data.factory", recipe.data.arguments)
        if recipe.model.inputs:
            given = example_inputs(recipe.model.inputs)
        inputs = first_inputs(self.data.train, "data.factory") if given is None else given
        teach = self._teacher(model)
        self.model = tq.prepare(model, inputs, recipe.config(str(path)), inplace=True).to(recipe.training.device)
        self.loss = loss_named(recipe.training.loss, recipe.training.device, teach)
        self.steps = steps or _steps(recipe.training, self.data)
        self.schedule = recipe.schedule.made()
        self.optimizer = _optimizer(self.model, recipe.training)
        self.scheduler = _scheduler(self.optimizer, recipe.training, self.steps)
        self.losses: list[float] = []

    def _teacher(self, model: nn.Module) -> Callable[..., Tensor] | None:
        """The term that [distillation] adds to the loss: made before `model` is prepared, which it may copy."""
        section = self.recipe.distillation
        if section is None:
            return None
        weights = None if section.teacher_weights is None else Path(section.teacher_weights)
        teacher = copy.deepcopy(model) if section.teacher is None else float_model(section.teacher, weights)[0]
        teacher.to(self.recipe.training.device)
        made: list[tq.Distillation] = []

        def term(outputs: Tensor, inputs: Any) -> Tensor:
            if not made:
                options = {"temperature": section.temperature, "features": section.features or None}
                made.append(tq.Distillation(self.model, teacher, **options))  # type: ignore[arg-type]
            args, kwargs = as_arguments(inputs)
            return section.weight * made[0](outputs, *args, **kwargs)

        return term

    def go(self, resume: bool) -> None:
        position = self._resumed() if resume else self._calibrated()
        position = self._train(position)
        self._save(position)
        self.model.eval()
        files = self.folder / "model.tq", self.folder / "model.onnx" if self.recipe.output.onnx else None
        found: dict[str, Any] = {"steps": position.step, "losses": self.losses, "checkpoint": str(self.checkpoint)}
        if self.recipe.training.loss == "cross-entropy":
            found["top1"] = accuracy(self.model, self.data.test, self.recipe.training.device)
            self.run.show(f"top-1 on the test batches: {100 * found['top1']:.2f} %")
        deploy(self.run, self.model.cpu(), *files, self.data.test, self.recipe.output.verify_batches, found)

    def _calibrated(self) -> Position:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            raise ArgumentError(
                f"'{self.checkpoint}' is there already",
                expected="an empty folder",
                fix="--resume goes on from it; another output.folder, or removing it, starts anew",
            )
        batches = shown(self.data.train, "calibrating", self.recipe.data.calibration_batches, self.run.console)
        tq.calibrate(self.model, batches, progress=False)
        return Position()

    def _resumed(self) -> Position:
        if not self.checkpoint.exists():
            raise ArgumentError(f"there is no '{self.checkpoint}' to resume from", fix="leave --resume out to start")
        found = tq.load_checkpoint(self.checkpoint, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)
        then = found.extra["recipe"]
        now = self._fixed()
        changed = [
            f"{table}.{key}"
            for table in now
            for key in {**(then.get(table) or {}), **(now[table] or {})}
            if (then.get(table) or {}).get(key) != (now[table] or {}).get(key)
        ]
        if changed:
            raise ArgumentError(
                f"{self.path} changed since the checkpoint: {', '.join(changed)}", fix="undo that, or start in another folder"
            )
        self.losses = list(found.extra["losses"])
        self.schedule.load_state_dict(found.extra["schedule"])
        self.run.show(f"resumed at step {found.step} of {self.steps}")
        return Position(**found.extra["position"])

    def _train(self, position: Position) -> Position:
        training = self.recipe.training
        with training_progress(self.run.console) as bars, Stopping() as stopping:
            bar = bars.add_task("training", total=self.steps, completed=position.step, loss=math.nan)
            for position, loss in training_steps(  # noqa: B020
                self.model, self.data.train, self.loss, self.optimizer, steps=self.steps, start=position,
                scheduler=self.scheduler, schedule=self.schedule, clip_gradient=training.clip_gradient, seed=training.seed,
            ):  # fmt: skip
                self.losses.append(loss)
                bars.update(bar, completed=position.step, loss=loss)
                if not math.isfinite(loss):
                    raise ArgumentError(
                        f"the loss is {loss} at step {position.step}",
                        fix=f"a lower training.learning_rate; '{self.checkpoint}' is from before",
                    )
                if stopping.wanted:
                    self._save(position)
                    self._interrupted(position, stopping.code)
                if position.step % self.recipe.output.checkpoint_every == 0:
                    self._save(position)
        return position

    def _interrupted(self, position: Position, code: int) -> None:
        command = f"truequant train {self.path} --resume"
        message = f"stopped behind step {position.step} of {self.steps}; saved {self.checkpoint}\nto go on: {command}"
        found = {"step": position.step, "checkpoint": str(self.checkpoint), "resume": command}
        raise Interrupted(message, code, found)

    def _save(self, position: Position) -> None:
        extra = {"position": asdict(position), "schedule": self.schedule.state_dict(), "losses": self.losses}
        extra["recipe"] = self._fixed()
        tq.save_checkpoint(
            self.checkpoint, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, step=position.step,
            extra=extra,
        )  # fmt: skip

    def _fixed(self) -> dict[str, Any]:
        """What may not change between a checkpoint and its resumption."""
        tables = self.recipe.model_dump(include={"model", "data", "training", "schedule", "distillation"})
        tables["training"]["steps"] = self.steps
        return tables


def _steps(training: TrainingSection, data: Data) -> int:
    if training.steps is not None:
        return training.steps
    if not isinstance(data.train, Sized):
        raise ArgumentError("training.epochs: the data does not say how long an epoch is", fix="training.steps instead")
    assert training.epochs is not None
    return training.epochs * len(data.train)


def _optimizer(model: nn.Module, training: TrainingSection) -> Optimizer:
    groups = tq.parameter_groups(model, training.weight_decay)
    if training.optimizer == "sgd":
        nesterov = training.momentum > 0
        return torch.optim.SGD(groups, training.learning_rate, momentum=training.momentum, nesterov=nesterov)
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, training.learning_rate)


def _scheduler(optimizer: Optimizer, training: TrainingSection, steps: int) -> LRScheduler:
    if training.learning_rate_schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    return ConstantLR(optimizer, factor=1.0)
