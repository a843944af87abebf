"""`calibrate`: ranges from data, and the methods of post-training quantization."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, get_args

from torch import nn

from truequant.calibration.method import Method, Stage, Work
from truequant.calibration.progress import Bars
from truequant.calibration.ranges import set_ranges
from truequant.errors import ArgumentError, ArgumentTypeError, StateError
from truequant.fake import outermost
from truequant.planning import arguments_of, items_of, takes_of
from truequant.schemes import Dynamic, Observation

Step = Method | Observation
_OBSERVATIONS = tuple(kind for kind in get_args(Observation) if kind is not Dynamic)  # which finds no range


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    method: Step | Sequence[Step] | None = None,
    *,
    inputs: Callable[[Any], Any] | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Set all activation ranges from `batches`, as the float model produces them; with a `method`, quantize after training.

    Runs without gradients for the model, with BatchNorm and dropout in evaluation; modes stay as they are. Ranges observed
    before are forgotten. Without a method, or with one that only sets ranges, weights and statistics stay too.

    batches: items, each a tensor, a tuple of positional inputs, or a dict of keyword inputs; of an `(x, y)` item a model
        with one input takes `x`. `inputs` maps an item to the inputs where that is not so. All are kept in memory where a
        method needs them more than once.
    method: a value or a sequence of values, in this order: `CrossLayerEqualization()`, `SmoothQuant()`; then how ranges are
        set, `MinMax()`, `Percentile()`, `MSE()`, `Entropy()`, `Histogram()` (left out: as each scheme says); then
        `AdaRound()`, `BlockReconstruction()`, `GPTQ()`, `BiasCorrection()`. The result evaluates, trains on and converts as
        any prepared model does; weights that were rounded keep their codes and their scale until training moves them.
    progress: bars on the terminal; None shows them where there is one.
    Tensors with NaN or infinity take no part in ranges; a warning names the first batch that holds some. Where a batch raises,
    ranges are as they were before.
    Raises `StateError` for a frozen model, `CalibrationError` where nothing finite reached a quantizer, `ArgumentError` for
    no batches or methods in an order that undoes one of them.

    >>> import torch, truequant as tq
    >>> x = torch.randn(16, 4)
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> steps = [tq.methods.CrossLayerEqualization(), tq.ranges.MSE(), tq.methods.BiasCorrection()]
    >>> qat = calibrate(tq.prepare(net, x, "w4a8-all"), [x], steps)
    >>> tq.verify(qat, tq.convert(qat), [x], runtimes=["reference"]).codes_different
    0
    """
    root = outermost(model)
    steps = _in_order(method)
    if root.binding.clock.state == "frozen":
        raise StateError("the ranges are frozen", fix="tq.unfreeze(model) before calibrating")
    takes = takes_of(root.binding.plan)
    items = iter(arguments_of(item, takes, inputs) for item in items_of(batches, "calibrate"))
    first = next(items, None)
    if first is None:
        raise ArgumentError(
            "calibrate: there were no batches",
            expected="at least one item",
            fix="pass a list or a DataLoader that is not used up",
        )
    with Bars(progress) as bars:
        if not any(isinstance(step, Method) for step in steps):
            known = len(batches) if isinstance(batches, Sized) else None
            set_ranges(root, itertools.chain([first], items), steps[0], bars, known)  # type: ignore[arg-type]
            return model
        work = Work(root, (first, *items), bars)
        for step in steps:
            if isinstance(step, Method):
                step.apply(work)
            else:
                set_ranges(root, work.batches, step, bars)
    return model


def _in_order(method: Step | Sequence[Step] | None) -> list[Step | None]:
    """The steps with range setting among them; `ArgumentError` for what is none and for an order that cannot be."""
    given: list[Any] = list(method) if isinstance(method, Sequence) else [] if method is None else [method]
    for step in given:
        if not isinstance(step, (Method, *_OBSERVATIONS)):
            raise ArgumentTypeError(
                "calibrate: not a method",
                got=repr(step)[:200],
                expected="AdaRound(), CrossLayerEqualization(), MSE() … or a sequence of them",
            )
    stages = [step.stage if isinstance(step, Method) else Stage.RANGES for step in given]
    if stages.count(Stage.RANGES) > 1 or stages != sorted(stages):
        raise ArgumentError(
            "calibrate: methods in an order that undoes one of them",
            got=", ".join(type(step).__name__ for step in given),
            expected="equalization, then at most one way to set ranges, then rounding and correction",
        )
    if Stage.RANGES in stages:
        return given
    at = stages.count(Stage.EQUALIZE)
    return [*given[:at], None, *given[at:]]
