"""What a trained model's forms are worth on some batches: top-1 where there are classes, size, latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import truequant as tq
from truequant.analysis import median_seconds
from truequant.integer.binding import takes as program_takes
from truequant.planning import Takes, arguments_of, inputs_of
from truequant.reports import Stage
from truequant.runtimes import RUNTIMES, default_runtime

_ROUNDS = 5
Form = Callable[..., Any]


def stages_of(qat: nn.Module, int8: tq.Int8Model, items: Sequence[Any]) -> list[Stage]:
    """The evaluated model with its quantizers off and on, the Int8 program, and its target's runtime where it is installed."""

    def in_float(*args: Any, **kwargs: Any) -> Any:
        with tq.quantizers_off(qat):
            return qat(*args, **kwargs)

    forms: dict[str, Form] = {"trained weights in float": in_float, "QAT as evaluated": qat, "Int8 program": int8}
    deployed = default_runtime(int8.program)
    if find_spec(RUNTIMES[deployed].package or deployed) is not None:
        forms[deployed] = tq.compile(int8, deployed)
    sizes = {"trained weights in float": 4 * sum(p.numel() for p in qat.parameters()), "Int8 program": int8.size_bytes}
    takes = program_takes(int8.program)
    args, kwargs = arguments_of(items[0], takes, None)
    seconds = median_seconds({name: partial(form, *args, **kwargs) for name, form in forms.items()}, _ROUNDS)
    size = next((len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim()), 1)
    return [
        Stage(name, _top1(form, items, takes), sizes.get(name), {size: seconds[name]}) for name, form in forms.items()
    ]  # fmt: skip


@torch.no_grad()
def _top1(form: Form, items: Sequence[Any], takes: Takes) -> float | None:
    """In percent; None where an item is no pair of inputs and classes."""
    right = total = 0
    for item in items:
        targets = item[1] if isinstance(item, (tuple, list)) and len(item) == 2 else None
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dim() != 1 or targets.dtype == torch.bool:
            return None
        args, kwargs = inputs_of(item[0], takes)
        answers = form(*args, **kwargs)
        if not isinstance(answers, Tensor) or answers.dim() != 2 or len(answers) != len(targets):
            return None
        right, total = right + int((answers.argmax(1) == targets).sum()), total + len(targets)
    return 100 * right / total if total else None
