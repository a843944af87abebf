"""Knowledge distillation in the user's own loop: logits and features of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truequant.errors import ArgumentError


class Distillation:
    """What a teacher adds to the loss (Hinton et al. 2015, section 2; features as in Romero et al. 2015, equation 3).

        loss = T^2 * KL(softmax(teacher / T) || softmax(student / T)) + sum over features w * |f_s - f_t|^2 / |f_t|^2

    student, teacher: models that answer with logits, classes on the last axis. The teacher is put into `eval()` and runs
    without gradients. temperature: T; high ones have made low-bit models diverge. features: weights by the name of a module
    that both models have, whose outputs have equal shapes.

        distillation = tq.training.Distillation(qat, teacher, features={"layer3": 0.1})
        logits = qat(x)
        loss = F.cross_entropy(logits, y) + 0.5 * distillation(logits, x)

    `close()` takes the hooks away, and so does leaving it as a context.
    Raises `ArgumentError` for a module that is not there, models that share parameters, or outputs of different shapes.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, *, temperature: float = 1.0, features: Mapping[str, float] | None = None
    ) -> None:
        if not temperature > 0:
            raise ArgumentError("Distillation: the temperature is not positive", got=temperature, expected="temperature > 0")
        if {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
            raise ArgumentError(
                "Distillation: student and teacher share parameters",
                fix="copy.deepcopy(model) before it is prepared or trained",
            )
        self.teacher, self.temperature, self.features = teacher.eval(), float(temperature), dict(features or {})
        self._seen: dict[tuple[str, str], Any] = {}
        self._handles = [
            self._watched(kind, model, name).register_forward_hook(self._keep(kind, name))
            for kind, model in (("student", student), ("teacher", teacher))
            for name in self.features
        ]  # fmt: skip

    @staticmethod
    def _watched(kind: str, model: nn.Module, name: str) -> nn.Module:
        try:
            return model.get_submodule(name)
        except AttributeError:
            raise ArgumentError(
                f"Distillation: the {kind} has no module '{name}'",
                expected="a name of named_modules()",
                fix="features={name: weight}",
            ) from None

    def _keep(self, kind: str, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._seen[kind, name] = output

        return hook

    def __call__(self, outputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The term for the student's `outputs`; `args`, `kwargs`: what the student was called with."""
        with torch.no_grad():
            expected = self.teacher(*args, **kwargs)
        if expected.shape != outputs.shape:
            raise ArgumentError(
                "Distillation: student and teacher answer in different shapes",
                got=tuple(outputs.shape), expected=tuple(expected.shape),
            )  # fmt: skip
        t = self.temperature
        ours, theirs = (
            F.log_softmax(outputs.float() / t, -1).flatten(0, -2),
            F.log_softmax(expected.float() / t, -1).flatten(0, -2),
        )
        loss = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * t * t
        for name, weight in self.features.items():
            loss = loss + weight * self._feature(name)
        return loss

    def _feature(self, name: str) -> Tensor:
        ours, theirs = (self._seen.pop((kind, name), None) for kind in ("student", "teacher"))
        if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or ours.shape != theirs.shape:
            shapes = [tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__ for f in (ours, theirs)]
            raise ArgumentError(
                f"Distillation: '{name}' does not return a tensor of one shape in both models",
                got=f"{shapes[0]} and {shapes[1]}",
                expected="a forward of the student before this call, and tensors of equal shapes",
            )  # fmt: skip
        theirs = theirs.detach().float()
        return (ours.float() - theirs).square().sum() / theirs.square().sum().clamp(min=torch.finfo(torch.float32).tiny)

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def __enter__(self) -> Distillation:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
