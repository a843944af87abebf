"""One training step of a model, in float, with truequant, and what must be true of the latter after it was timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from subjects import Subject
from torch import Tensor, nn

import truequant as tq
from truequant.fake import FakeQuantize, WeightQuantizer, quantizers

CLASSES = 10


@dataclass(frozen=True)
class Contender:
    """A model and its training step; `prepared` is the module behind a compiled one."""

    name: str
    step: Callable[[], object]
    prepared: nn.Module


def training_step(
    model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Callable[[], object]:
    """Gradients to None, forward, cross entropy, backward, optimizer."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def batch_of(subject: Subject, size: int, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Inputs and classes."""
    torch.manual_seed(1)
    x = subject.inputs(size)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.randint(0, CLASSES, (size,))


def float_model(subject: Subject, channels_last: bool) -> nn.Module:
    """The model in training mode: the same parameters at every call."""
    torch.manual_seed(0)
    model = subject.make().train()
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def contender(name: str, subject: Subject, model: nn.Module, x: Tensor, y: Tensor, compiled: bool = False) -> Contender:
    """The training step of `model`, through `torch.compile` if asked."""
    call = torch.compile(model) if compiled else model
    return Contender(name, training_step(call, subject.optimizer(model), x, y), model)


def ours(subject: Subject, model: nn.Module, x: Tensor) -> nn.Module:
    """`tq.prepare` on a copy of the plain model, ranges set by one forward."""
    qat = tq.prepare(model, x[: min(2, len(x))])
    with torch.no_grad():
        qat(x)
    return qat


# -- what must be true of the timed model ----------------------------------------------------------------------------------
class Counted:
    """How often each planned quantizer committed what it observed, over some steps."""

    def __init__(self, qat: nn.Module) -> None:
        self.qat = qat
        self.before = self._updates()

    def _updates(self) -> dict[str, int]:
        return {n: int(q.observer.updates) for n, q in quantizers(self.qat) if isinstance(q, FakeQuantize)}

    def silent(self, steps: int) -> list[str]:
        """Quantizers that did not observe in every one of `steps` steps."""
        after = self._updates()
        return [name for name, count in self.before.items() if after[name] - count != steps]


def idle_quantizers(qat: nn.Module, x: Tensor) -> list[str]:
    """Quantizers of activations and weights without which a training forward gives the very same result: it must be none.

    Ranges are frozen in a copy, so that nothing but the one quantizer that is switched off differs between two forwards; the
    quantizers of the outputs, whose grid would swallow a small difference, are switched off for all the others.
    """
    held: Any = tq.freeze(copy.deepcopy(qat))
    outputs = {q.name for q in held.binding.plan.quantizers if q.kind == "output"}
    table = dict(quantizers(held))
    idle = []
    with torch.no_grad():
        for group in (outputs, table.keys() - outputs):
            expected = held(x)
            for name in sorted(group):
                table[name].quantizing = False
                if torch.equal(held(x), expected):
                    idle.append(name)
                table[name].quantizing = True
            for name in outputs:
                table[name].quantizing = False
    return idle


def codes_different(qat: nn.Module, x: Tensor) -> dict[str, dict[str, int]]:
    """Codes in which the converted model differs from the evaluated one, by runtime: compared, different, and how many of the
    latter only follow from float islands that the runtime sums in its own order.
    """
    held = copy.deepcopy(qat).eval()
    reports = tq.verify(held, tq.convert(held), [x], runtimes=("reference", "onnxruntime")).runtimes
    return {
        name: {"compared": r.codes_compared, "different": r.codes_different, "behind_islands": r.codes_behind_islands}
        for name, r in reports.items()
    }


def planned(qat: nn.Module) -> int:
    """How many quantizers there are."""
    return sum(isinstance(q, (FakeQuantize, WeightQuantizer)) for _, q in quantizers(qat))
