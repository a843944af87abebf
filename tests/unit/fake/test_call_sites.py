"""A call that planning never saw raises, whatever op of the table it calls; arithmetic of constants goes its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.errors import PlanError
from truequant.planning import Op, Role
from truequant.planning.ops import OPS

Call = Callable[..., Any]
SHAPES = ((2, 8), (2, 4, 8), (2, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8, 8))


def calls(op: Op) -> Iterator[tuple[tuple[int, ...], Call, tuple[Any, ...]]]:
    """Ways in which an op might be called on an activation of some shape, and other arguments."""
    function = op.functions[0]
    for shape in SHAPES:
        channels = shape[1]
        others: tuple[tuple[Any, ...], ...] = (
            (), (2,), (0, 1), (0.5,), (1, 2), (-1, (2, 4)), (0, 0, 1), ((1, 1),), (shape,), (tuple(range(len(shape))),),
            (0, 1.0), (torch.zeros(8), torch.ones(8)), (torch.zeros(channels), torch.ones(channels)), (0, torch.tensor([0])),
        )  # fmt: skip
        kernels = ((), (3,), (3, 3), (3, 3, 3))
        weights = [w for k in kernels for w in ((4, channels, *k), (channels, 4, *k))]
        for rest in (*others, *((torch.rand(w),) for w in ((8, 8), *weights, (1,)))):
            yield shape, function, rest
        yield shape, lambda y: function(y, y), ()
        yield shape, lambda y: function([y, y]), ()
        yield shape, lambda y, bias, weight: function(bias, y, weight), (torch.zeros(4), torch.rand(8, 4))
        yield shape, lambda y: function("ab,cb->ac", y, y), ()
        yield shape, lambda y, table: function((y > 0).long(), table), (torch.rand(2, 4),)


@cache
def a_call(op: Op) -> tuple[tuple[int, ...], Call, tuple[Any, ...]]:
    """One that works, so that an op that is new in the table is tested by itself."""
    for shape, call, rest in calls(op):
        try:
            result = call(torch.rand(shape), *rest)
        except (TypeError, RuntimeError, ValueError, IndexError, AttributeError):
            continue
        if result is not NotImplemented:
            return shape, call, rest
    raise AssertionError(f"'{op.name}': no way was found to call it; add one above")


def itself(y: Tensor) -> Tensor:
    return y


def positions(y: Tensor) -> Tensor:
    return (torch.arange(y.numel()).float() * 0.01).reshape(y.shape)


class Net(nn.Module):
    """Calls an op once, and once more, before or behind, where it is told to."""

    def __init__(self, call: Call, rest: tuple[Any, ...], planned: bool) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.call, self.rest, self.planned, self.more = call, rest, planned, ""
        self.made: Callable[[Tensor], Tensor] = itself

    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(self.first(x))
        if self.more == "before":
            self.call(self.made(y), *self.rest)
        z = self.call(y, *self.rest) if self.planned else y
        if self.more == "behind":
            self.call(self.made(y), *self.rest)
        return z if isinstance(z, Tensor) else y


def prepared(op: Op, planned: bool) -> Any:
    torch.manual_seed(0)
    shape, call, rest = a_call(op)
    x = torch.rand(shape)
    return tq.calibrate(tq.prepare(Net(call, rest, planned), x), [x]), x


def outcome(qat: Any, x: Tensor, training: bool, more: str) -> Tensor:
    qat.train(training).more = more
    torch.manual_seed(1)
    result: Tensor = qat(x).detach()
    return result


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_call_beside_the_planned_one(op: Op) -> None:
    """On an activation it raises, before or behind; on constants it raises nothing and moves no ordinal."""
    qat, x = prepared(op, True)
    tq.freeze(qat)
    for training in (False, True):
        alone = outcome(qat, x, training, "")
        for more in ("before", "behind"):
            qat.made = positions
            assert torch.equal(outcome(qat, x, training, more), alone) or "dropout" in op.name  # which draws other numbers
            qat.made = itself
            refuses(op, qat, x, training, more, 1)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_call_of_an_op_that_was_not_planned_at_all(op: Op) -> None:
    qat, x = prepared(op, False)
    for training in (False, True):
        qat.made = itself
        refuses(op, qat, x, training, "before", 0)
        qat.made = positions
        outcome(qat, x, training, "before")


def refuses(op: Op, qat: Any, x: Tensor, training: bool, more: str, known: int) -> None:
    if op.role is Role.IDENTITY:  # hands on the values that it is given: nothing is computed, and no site differs from another
        outcome(qat, x, training, more)
        return
    with pytest.raises(PlanError) as caught:
        outcome(qat, x, training, more)
    mode = "training" if training else "evaluation"
    assert str(caught.value) == (
        f"the model: call {known} of '{op.name}' was not there when the model was prepared\n"
        f"  got:      at least {known + 1} calls of '{op.name}' in one forward, in {mode}\n"
        f"  expected: {known}\n"
        "  fix:      prepare with example inputs that take this path"
    )
