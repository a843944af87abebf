"""What `truequant train` does: everything that a recipe names is made, trained, saved, and deployed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

import truequant as tq
from truequant.calibration import progress_bars
from truequant.cli.data import Data, data_of, first, first_inputs
from truequant.cli.deployed import deploy, exportable
from truequant.cli.inputs import RANDOM, draws_weights, example_inputs, float_model
from truequant.cli.losses import accuracy, loss_named, test_loss
from truequant.cli.recipe import Recipe, TrainingSection
from truequant.cli.saving import Saving
from truequant.cli.session import Interrupted, Session
from truequant.cli.stopping import Stopping
from truequant.errors import ArgumentError
from truequant.planning import as_arguments
from truequant.training.history import Watch
from truequant.training.loop import Position, random_state_kept, seed_random, training_steps

_POINTS = 100
"""Steps whose scales and oscillations are remembered for the report, spread over a training."""


class Training:
    """What a run holds: everything that the recipe names, made."""

    def __init__(self, recipe: Recipe, path: Path, steps: int | None, run: Session) -> None:
        self.recipe, self.path, self.run = recipe, path, run
        self.folder = Path(recipe.output.folder)
        seed_random(recipe.training.seed)
        weights = None if recipe.model.weights is None else Path(recipe.model.weights)
        model, given = float_model(recipe.model.factory, weights, recipe.model.arguments)
        if weights is None and draws_weights(model, recipe.model.factory, recipe.model.arguments):
            run.show(f'[yellow]{RANDOM}: weights = "float.safetensors" in \\[model].[/]')
        self.data = data_of(recipe.data.factory, "data.factory", recipe.data.arguments)
        if recipe.model.inputs:
            given = example_inputs(recipe.model.inputs)
        inputs = first_inputs(self.data.train, "data.factory") if given is None else given
        teach = self._teacher(model)
        self.model = tq.prepare(model, inputs, recipe.config(str(path)), inplace=True).to(recipe.training.device)
        if recipe.output.onnx:
            exportable(self.model, "onnx = false in [output] writes model.tq alone")
        self.loss = loss_named(recipe.training.loss, recipe.training.device, teach)
        self.steps = steps or _steps(recipe.training, self.data)
        self.schedule = recipe.schedule.made()
        self.optimizer = _optimizer(self.model, recipe.training)
        self.scheduler = _scheduler(self.optimizer, recipe.training, self.steps)
        self.losses: list[float] = []
        self.watch = Watch(self.model, self.optimizer, every=max(1, self.steps // _POINTS))
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.saving = Saving(recipe.output, parts, self._fixed())

    def _teacher(self, model: nn.Module) -> Callable[..., Tensor] | None:
        """The term that [distillation] adds to the loss: made before `model` is prepared, which it may copy."""
        section = self.recipe.distillation
        if section is None:
            return None
        weights = None if section.teacher_weights is None else Path(section.teacher_weights)
        teacher = copy.deepcopy(model) if section.teacher is None else float_model(section.teacher, weights)[0]
        teacher.to(self.recipe.training.device)
        made: list[tq.training.Distillation] = []

        def term(outputs: Tensor, inputs: Any) -> Tensor:
            if not made:
                options = {"temperature": section.temperature, "features": section.features or None}
                made.append(tq.training.Distillation(self.model, teacher, **options))  # type: ignore[arg-type]
            args, kwargs = as_arguments(inputs)
            return section.weight * made[0](outputs, *args, **kwargs)

        return term

    def go(self, resume: bool) -> None:
        with self.saving.manager:
            position = self._train(self._resumed() if resume else self._calibrated())
            if not self.saving.kept(position):
                self._save(position, wait=True)
        self.model.eval()
        files = self.folder / "model.tq", self.folder / "model.onnx" if self.recipe.output.onnx else None
        found: dict[str, Any] = {"steps": position.step, "losses": self.losses, "checkpoint": str(self.saving.newest())}
        if self.recipe.training.loss == "cross-entropy":
            found["top1"] = accuracy(self.model, self.data.test, self.recipe.training.device)
            self.run.show(f"top-1 on the test batches: {100 * found['top1']:.2f} %")
        deploy(self.run, self.model.cpu(), *files, self.data.test, self.recipe.output.verify_batches, found)

    def _calibrated(self) -> Position:
        self.saving.begin()
        tq.calibrate(self.model, first(self.data.train, self.recipe.data.calibration_batches))
        with random_state_kept():  # what cannot be converted says so now, and not behind hours of training
            tq.convert(copy.deepcopy(self.model).cpu().eval())
        return Position()

    def _resumed(self) -> Position:
        found = self.saving.resume(self.path, self.run.console)
        self.losses = list(found.extra["losses"])
        self.schedule.load_state_dict(found.extra["schedule"])
        self.watch.resume(found.extra["history"], found.step)
        self.run.show(f"resumed at step {found.step} of {self.steps}")
        return Position(**found.extra["position"])

    def _train(self, position: Position) -> Position:
        training = self.recipe.training
        with progress_bars(self.run.console) as bars, Stopping() as stopping:
            bar = bars.add_task("training", total=self.steps, completed=position.step)
            for position, loss in training_steps(  # noqa: B020
                self.model, self.data.train, self.loss, self.optimizer, steps=self.steps, start=position,
                scheduler=self.scheduler, schedule=self.schedule, clip_gradient=training.clip_gradient, seed=training.seed,
            ):  # fmt: skip
                self.losses.append(loss)
                bars.update(bar, completed=position.step, loss=loss)
                if not math.isfinite(loss):
                    raise ArgumentError(
                        f"the loss is {loss} at step {position.step}",
                        fix=f"a lower training.learning_rate; what '{self.saving.folder}' holds is from before",
                    )
                self.watch.stepped(position.step, loss=loss)
                if stopping.wanted:
                    self._save(position, wait=True)
                    self._interrupted(position, stopping.code)
                if position.step % self.recipe.output.checkpoint_every == 0:
                    self._save(position)
        return position

    def _interrupted(self, position: Position, code: int) -> None:
        command, checkpoint = f"truequant train {self.path} --resume", str(self.saving.newest())
        message = f"stopped behind step {position.step} of {self.steps}; saved {checkpoint}\nto go on: {command}"
        raise Interrupted(message, code, {"step": position.step, "checkpoint": checkpoint, "resume": command})

    def _save(self, position: Position, *, wait: bool = False) -> None:
        extra = {"schedule": self.schedule.state_dict(), "losses": self.losses, "history": self.watch.history.to_dict()}
        self.saving.save(position, self._metric(position), extra, wait=wait)

    def _metric(self, position: Position) -> float | None:
        """How good this state is: the smaller the better."""
        output = self.recipe.output
        if output.best == "none":
            return None
        if output.best == "loss":
            since = (position.step - 1) % output.checkpoint_every + 1
            recent = self.losses[-since:]
            return sum(recent) / len(recent)
        with random_state_kept():  # what the test data draws does not reach training
            return test_loss(self.model, self.data.test, self.loss)

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
    groups = tq.training.parameter_groups(model, training.weight_decay)
    if training.optimizer == "sgd":
        nesterov = training.momentum > 0
        return torch.optim.SGD(groups, training.learning_rate, momentum=training.momentum, nesterov=nesterov)
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, training.learning_rate)


def _scheduler(optimizer: Optimizer, training: TrainingSection, steps: int) -> LRScheduler:
    if training.learning_rate_schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    return ConstantLR(optimizer, factor=1.0)
