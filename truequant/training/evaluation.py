"""`evaluate`: any form of a model against any metric."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from truequant.errors import ArgumentError
from truequant.fake import QATModuleWrapper, input_clipping
from truequant.integer import Int8Model, count_clipped
from truequant.integer.binding import bind
from truequant.integer.binding import takes as program_takes
from truequant.numerics import InputClipping
from truequant.planning import Takes, inputs_of, items_of, takes_of

Result = TypeVar("Result", covariant=True)


class Metric(Protocol[Result]):
    """What torchmetrics' metrics and collections are: told of predictions and targets, asked for the result."""

    def update(self, *args: Any) -> None: ...

    def compute(self) -> Result: ...


class Accuracy:
    """The share of examples (of pixels, of tokens) whose largest output along axis 1 is the target."""

    def __init__(self) -> None:
        self.right = self.count = 0

    def update(self, answers: Any, targets: Any) -> None:
        fits = isinstance(answers, Tensor) and isinstance(targets, Tensor) and answers.dim() >= 2
        if not fits or targets.is_floating_point() or answers.shape[:1] + answers.shape[2:] != targets.shape:
            raise ArgumentError(
                "evaluate: accuracy is not defined for these answers",
                got=f"answers {_described(answers)}, targets {_described(targets)}",
                expected="outputs (N, classes, …) and whole-numbered targets (N, …)",
                fix="metric=… with update(predictions, targets) and compute(); predictions=lambda y: y[0] picks an output",
            )
        self.right += int((answers.argmax(1) == targets).sum())
        self.count += targets.numel()

    def compute(self) -> float:
        return self.right / self.count


def _described(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@torch.no_grad()
def evaluate(
    model: Callable[..., Any],
    batches: Iterable[Any],
    metric: Metric[Result] | None = None,
    *,
    predictions: Callable[[Any], Any] | None = None,
) -> Result | float:
    """What `metric` says of a model's answers: the float model, a prepared one, an Int8 model or a compiled one alike.

    A module is evaluated in `eval()` and left in the modes that it was in.
    batches: items `(inputs, targets)`; inputs are a tensor, a tuple of positional or a dict of keyword inputs.
    metric: anything with `update(predictions, targets)` and `compute()`, such as a `torchmetrics.Metric` or
        `MetricCollection`; it is not reset before. Left out: the share of examples whose largest output along axis 1 is the
        target, for outputs `(N, classes, …)` and whole-numbered targets `(N, …)`.
    predictions: from what the model returns to what the metric takes; by default as it is.
    Raises `ArgumentError` for no batches, one that is no pair, or answers of which the default metric knows nothing.

    >>> evaluate(nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 1]))])
    0.6666666666666666
    """
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    asked: Metric[Result] | Accuracy = Accuracy() if metric is None else metric
    takes = Takes()
    if isinstance(model, Int8Model):
        takes = program_takes(model.program)
    elif isinstance(model, QATModuleWrapper):
        takes = takes_of(model.binding.plan)
    count = 0
    try:
        for module in modes:
            module.training = False
        for item in items_of(batches, "evaluate"):
            if not isinstance(item, (tuple, list)) or len(item) != 2:
                raise ArgumentError("evaluate: a batch is no pair", got=type(item).__name__, expected="(inputs, targets)")
            args, kwargs = inputs_of(item[0], takes)
            answers = model(*args, **kwargs) if count else _first(model, args, kwargs)
            asked.update(answers if predictions is None else predictions(answers), item[1])
            count += 1
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not count:
        raise ArgumentError("evaluate: there were no batches", expected="at least one", fix="pass a list or a DataLoader")
    return asked.compute()


def _first(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The answers for the first batch, and a warning where a quantized model clips much of it."""
    counts = InputClipping()
    if isinstance(model, QATModuleWrapper):
        with input_clipping(model) as counts:
            answers = model(*args, **kwargs)
    else:
        answers = model(*args, **kwargs)
        if isinstance(model, Int8Model):
            count_clipped(model.program, bind(model.program, args, kwargs), counts)
    for remark in counts.remarks():
        warnings.warn(f"evaluate: {remark}", stacklevel=4)
    return answers
