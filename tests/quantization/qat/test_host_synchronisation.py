"""A training step asks no tensor for its value: on a GPU the host never waits, and the step can be captured in a CUDA graph.

Counted on the CPU, where every such question is the same operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import truequant as tq
from tests.models import FAMILIES
from tests.models.classic import BasicBlock, conv, head
from truequant.observers import search
from truequant.schemes import Observation

QUESTIONS = frozenset(
    ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select",
     "aten::_unique2", "aten::unique_dim", "aten::index.Tensor_bool")
)  # fmt: skip


class Questions(TorchDispatchMode):
    """Counts what makes a host wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        indexed = name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in QUESTIONS or indexed:
            self.asked[name] += 1
        return func(*args, **(kwargs or {}))


def asked_in_a_step(model: nn.Module, x: Tensor) -> Counter[str]:
    model(x)  # the first batch sets the ranges
    model(x).square().mean().backward()
    with Questions() as questions:
        model(x).square().mean().backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
    return questions.asked


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        return torch.cat([self.b(y) + y, y * 0.5], 1)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "residual": (lambda: nn.Sequential(conv(3, 8), BasicBlock(8, 8, 2), head(8)), lambda: torch.randn(4, 3, 8, 8)),
    "functions": (Functions, lambda: torch.randn(4, 6)),
    "attention": (FAMILIES["vision Transformer"].make, FAMILIES["vision Transformer"].inputs),
}


@pytest.mark.parametrize("preset", ["w8a8", "w8a8-pow2", "w8a8-per-tensor", "w4a4", "w1a1"])
@pytest.mark.parametrize("name", MODELS)
def test_no_question_in_a_training_step(name: str, preset: str) -> None:
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    x = inputs()
    assert asked_in_a_step(tq.prepare(make(), x, preset), x) == Counter()


@pytest.mark.parametrize(
    "observer", [tq.ranges.Histogram(), tq.ranges.Percentile(), tq.ranges.MSE(), tq.ranges.MSE(64, 8)], ids=str
)
def test_none_while_ranges_come_from_histograms(observer: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(search, "used", lambda counts, middle: (counts, middle))  # asks on a CPU only
    activation = tq.QuantScheme(tq.types.uint8, observer=observer)
    x = torch.randn(4, 6)
    assert asked_in_a_step(tq.prepare(Functions(), x, tq.QConfig(activation=activation)), x) == Counter()


def test_questions_are_counted() -> None:
    """The counter sees what it is there to see."""

    class Asks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if bool(y.sum() > 1e9) or y.max().item() > 1e9 else y[x[:, 0] > -1e9]

    assert sum(asked_in_a_step(Asks(6, 8), torch.randn(4, 6)).values()) >= 3
