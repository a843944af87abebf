"""A learned scale cannot collapse: whatever gradients and learning rates do, it stays near what was seen, and comes back."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.fake import quantizers
from truequant.fake.limits import REACH

X = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
RULES = {"lsq": tq.scales.LSQ(), "lsq+": tq.scales.LSQPlus(), "pact": tq.scales.PACT(), "tqt": tq.scales.TQT()}


def prepared(rule: Any, bits: str = "4") -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    base = tq.QConfig.preset(f"w{bits}a{bits}-all")
    assert base.weight is not None
    assert base.activation is not None
    weight = base.weight.with_(scale=tq.scales.LSQ() if isinstance(rule, tq.scales.PACT) else rule)
    qat = tq.prepare(model, X, tq.QConfig(weight, base.activation.with_(scale=rule)))
    return tq.calibrate(qat, [X])


def learned(qat: nn.Module) -> list[Any]:
    return [q for _, q in quantizers(qat) if q.shift is not None]


def check(qat: nn.Module) -> None:
    for q in learned(qat):
        scale, start = q.effective_scale().detach(), q.scale
        assert bool(torch.isfinite(scale).all())
        slack = 2.0 if q.scheme.power_of_two else 1.0  # a power of two is rounded up
        assert bool((scale >= start / REACH * (1 - 1e-6)).all())
        assert bool((scale <= start * REACH * slack * (1 + 1e-6)).all())
        assert bool((q.zero_point >= q.scheme.qmin).all())
        assert bool((q.zero_point <= q.scheme.qmax).all())


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("rule", RULES)
def test_huge_gradients_at_learning_rate_10(rule: str, size: float, sign: float) -> None:
    qat = prepared(RULES[rule], "2" if size > 1e20 else "4").train()
    optimizer = torch.optim.SGD([p for q in learned(qat) for p in q.learned_parameters()], 10.0, momentum=0.9)
    for _ in range(3):
        qat(X).square().mean().backward()
        for q in learned(qat):
            for p in q.learned_parameters():
                p.grad = torch.full_like(p, sign * size)
        optimizer.step()
        y = qat(X)  # a step begins: what is in force is within the limits
        check(qat)
        assert bool(torch.isfinite(y).all())
    qat.eval()
    check(qat)
    int8 = tq.convert(qat)
    assert torch.equal(int8(X), qat(X))


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 10.0, 0.9, nesterov=True), lambda p: torch.optim.Adam(p, 10.0)])
@pytest.mark.parametrize("rule", RULES)
def test_training_on_noise_at_learning_rate_10(rule: str, make: Any) -> None:
    qat = prepared(RULES[rule]).train()
    optimizer = make([p for q in learned(qat) for p in q.learned_parameters()])
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        optimizer.zero_grad()
        y = qat(X)
        check(qat)
        (y * 1e4 * torch.randn(y.shape, generator=generator)).sum().backward()
        optimizer.step()
    check(qat.eval())


def test_eval_takes_the_last_step_back_and_evaluation_writes_nothing() -> None:
    qat = prepared(tq.scales.LSQ()).train()
    with torch.no_grad():
        for q in learned(qat):
            q.shift.fill_(-1e9)
    qat.eval()
    check(qat)
    before = {k: v.clone() for k, v in qat.state_dict().items()}
    qat(X)
    assert all(torch.equal(v, before[k]) for k, v in qat.state_dict().items())


@pytest.mark.slow
def test_a_scale_at_its_limit_finds_back() -> None:
    """No place where the gradient of the scale has vanished: a ruined start trains as well as a good one."""
    losses = []
    target = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
    for ruined in (0.0, -1e9, 1e9):
        qat = prepared(tq.scales.LSQ()).train()
        with torch.no_grad():
            for q in learned(qat):
                q.shift.fill_(ruined)
        optimizer = torch.optim.SGD(tq.training.parameter_groups(qat), 0.1, 0.9)
        for _ in range(600):
            optimizer.zero_grad()
            loss = (qat(X) - target).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
        check(qat.eval())
    assert losses[0] < 0.05
    assert max(losses[1:]) < 0.2  # about 1 without training


def test_ordinary_training_is_not_touched() -> None:
    """The limits bind only beyond REACH: the same bits with and without them."""
    states: list[dict[str, Tensor]] = []
    for bound in (True, False):
        qat = prepared(tq.scales.LSQ()).train()
        if not bound:
            qat.binding.limits = None
        optimizer = torch.optim.SGD(tq.training.parameter_groups(qat), 0.05, 0.9)
        for _ in range(30):
            optimizer.zero_grad()
            qat(X).square().mean().backward()
            optimizer.step()
        states.append(qat.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_copies_have_limits_of_their_own_and_a_waiting_backward_keeps_its_tensors() -> None:
    qat = copy.deepcopy(prepared(tq.scales.LSQ())).train()
    assert all(any(q is other for other in learned(qat)) for q in qat.binding.limits.grids)
    first, second = qat(X), qat(X)  # one step: nothing is written between the two
    (first.sum() + second.sum()).backward()
    waiting = qat(X)
    with torch.no_grad():
        for q in learned(qat):
            q.shift.fill_(100.0)
    assert math.isfinite(float(qat(X).detach().sum()))  # written while an output waits: put back all the same
    assert waiting.grad_fn is not None
    check(qat)
