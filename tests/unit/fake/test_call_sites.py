"""A call that planning never saw raises, whatever op of the table it calls; arithmetic of constants goes its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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
        yield shape, lambda y: function(y, y, y), ()
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


class Pair(nn.Module):
    """Two products with matrices of one shape: the second takes the site of the first where that is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.k, self.w = nn.Parameter(torch.rand(8, 8)), nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        if x.shape[0] > 4:
            y = y @ self.k
        return y @ self.w


@pytest.mark.parametrize("training", [False, True])
def test_a_planned_call_that_is_left_out(training: bool) -> None:
    x = torch.rand(8, 8)
    qat = tq.calibrate(tq.prepare(Pair(), x), [x]).train(training)
    qat(x)
    with pytest.raises(PlanError) as caught:
        qat(x[:2])
    mode = "training" if training else "evaluation"
    assert str(caught.value) == (
        "the model: a call of 'matmul' that was there when the model was prepared was left out\n"
        f"  got:      1 calls of 'matmul' in one forward, in {mode}\n"
        "  expected: 2\n"
        "  fix:      prepare with example inputs that take this path"
    )


def test_a_weight_of_other_channels_is_another_call() -> None:
    class Odd(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.rand(8, 4))

    x = torch.rand(8, 8)
    qat = tq.calibrate(tq.prepare(Odd(), x[:2]), [x[:2]]).eval()
    with pytest.raises(PlanError) as caught:
        qat(x)
    assert str(caught.value) == (
        "'matmul_0': this call is given another weight than when the model was prepared\n"
        "  got:      8 output channels\n"
        "  expected: 4\n"
        "  fix:      prepare with example inputs that take this path"
    )


class Anchors(nn.Module):
    """Positions that are made where the size is another one, and kept, beside calls of the same ops on activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.grid: Tensor | None = None
        self.kept: dict[int, Tensor] = {}
        self.register_buffer("table", torch.rand(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None or len(self.grid) != x.shape[1]:
            self.grid = (torch.arange(x.shape[1]).float().unsqueeze(1) + 0.5) * 0.01
        if x.shape[1] not in self.kept:
            self.kept[x.shape[1]] = self.table[: x.shape[1]] * 2.0
        y = F.relu(self.first(x) + self.grid)
        return (y * self.kept[x.shape[1]].clone().add(1.0))[:, 1:].unsqueeze(1) + 1.0


@pytest.mark.parametrize("training", [False, True])
def test_constants_that_are_kept_between_forwards(training: bool) -> None:
    x = torch.rand(2, 6, 8)
    qat = tq.calibrate(tq.prepare(Anchors(), x), [x]).train(training)
    tq.freeze(qat)
    made, kept = qat(x), qat(x)
    assert torch.equal(made, kept)
    assert torch.equal(made[:, :, :3], qat(x[:, :4]))  # made anew, for another size


class Shared(nn.Module):
    """One activation module for activations and for constants."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.late = nn.Linear(8, 8), nn.GELU(), nn.Tanh()
        self.pos = nn.Parameter(torch.rand(8))
        self.more = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x)) + self.act(self.pos)
        return self.late(y) if self.more else y


def test_a_module_that_is_given_a_constant() -> None:
    x = torch.rand(2, 8)
    qat: Any = tq.calibrate(tq.prepare(Shared(), x), [x]).eval()
    assert torch.equal(tq.convert(qat)(x), qat(x))
    qat.train()(x)


def test_a_module_without_parameters_that_no_example_called() -> None:
    x = torch.rand(2, 8)
    qat: Any = tq.calibrate(tq.prepare(Shared(), x), [x])
    assert torch.equal(qat.late(x), torch.tanh(x))  # outside of the model's forward it is anybody's
    qat.more = True
    for training in (False, True):
        with pytest.raises(PlanError, match="'late': call 0 of 'tanh' was not there when the model was prepared"):
            qat.train(training)(x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.k = nn.Linear(8, 8), nn.Parameter(torch.rand(8))
        self.more = False

    def forward(self, x: Tensor) -> Tensor:
        k = self.k * 2.0  # mul_0, of constants
        y = F.relu(self.first(x)) * 0.3
        return (y + k) * 0.5 if self.more else y + k


def test_a_plan_from_before_constants_were_counted_apart() -> None:
    x, model = torch.rand(2, 8), Scaled()
    now = tq.plan(model, x)
    assert [(s.ordinal, s.rank) for s in now.sites if s.op == "mul"] == [(1, 0)]
    owners = tuple(replace(o, calls=None) for o in now.owners)
    before = replace(now, owners=owners, sites=tuple(replace(s, rank=None, train_rank=None) for s in now.sites))
    old, new = (tq.calibrate(tq.prepare(model, x, p), [x]).eval() for p in (before, now))
    assert torch.equal(old(x), new(x))
    assert torch.equal(tq.convert(old)(x), new(x))
    old.more = True
    with pytest.raises(PlanError, match="call 2 of 'mul' was not there when the model was prepared"):
        old(x)


class Named(nn.Module):
    """A table whose input is given by its name."""

    def __init__(self, *, by_name: bool) -> None:
        super().__init__()
        self.first, self.last, self.by_name = nn.Linear(4, 4), nn.Linear(4, 2), by_name

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(F.gelu(input=y) if self.by_name else F.gelu(y))


def test_in_evaluation_gradients_pass_through_arguments_by_name_too() -> None:
    gradients = []
    for by_name in (False, True):
        torch.manual_seed(0)
        x = torch.randn(3, 4, requires_grad=True)
        qat = tq.calibrate(tq.prepare(Named(by_name=by_name), x.detach()), [x.detach()]).eval()
        qat(x).sum().backward()
        gradients.append(x.grad)
    first, second = gradients
    assert first is not None
    assert second is not None
    assert bool(first.any())
    assert torch.equal(first, second)
