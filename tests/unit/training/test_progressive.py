"""Widths that shrink while training: wider codes first, the planned ones last; checkpoints and the deployed model with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import truequant as tq
from truequant.errors import ArgumentError, StateError

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, schedule: tq.training.QATSchedule, steps: int) -> None:
    optimizer = torch.optim.SGD(tq.training.parameter_groups(model), 0.01)
    for _ in range(steps):
        schedule.step(model)
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def widths(model: nn.Module) -> dict[str, int]:
    return {name: q.scheme.dtype.bits for name, q in tq.quantizers(model)}


@pytest.mark.parametrize("preset", ["w2a2", "w1a1", "w2a2-all"])
def test_codes_narrow_step_by_step_down_to_the_plan(preset: str) -> None:
    qat = tq.prepare(net(), X, preset)
    planned = {name: q.planned.dtype.bits for name, q in tq.quantizers(qat)}
    schedule = tq.training.QATSchedule(bits={0: 4, 3: 3, 5: int(preset[1])})
    for step in range(7):
        train(qat, schedule, 1)
        bits = 4 if step < 3 else 3 if step < 5 else int(preset[1])
        assert widths(qat) == {name: max(bits, n) for name, n in planned.items()}
        weight = qat.get_submodule("2")
        seen = torch.unique(weight.get_submodule("quantizers.weight").codes(weight.weight))  # type: ignore[operator]
        assert int(seen.abs().max()) <= 2 ** (max(bits, 2) - 1) - 1
        report = tq.verify(
            qat.eval(), tq.convert(qat), [X], runtimes=("reference", "onnxruntime") if step in (0, 6) else ("reference",)
        )
        assert report.codes_different == 0
        qat.train()
    assert all(q.scheme == q.planned for _, q in tq.quantizers(qat))


def test_ranges_are_found_again_at_a_change_and_only_then() -> None:
    qat = tq.prepare(net(), X, "w2a2")
    schedule = tq.training.QATSchedule(bits={0: 4, 3: 2})
    train(qat, schedule, 2)
    quantizer = qat.get_submodule("2.quantizers.weight")
    assert float(quantizer.shift.detach().abs().sum()) > 0  # type: ignore[union-attr, operator]
    before = quantizer.scale.clone()  # type: ignore[union-attr, operator]
    train(qat, schedule, 1)
    assert torch.equal(quantizer.scale, before)  # type: ignore[arg-type]
    schedule.step(qat)
    assert float(quantizer.shift.detach().abs().sum()) == 0  # type: ignore[union-attr, operator]
    assert bool((quantizer.scale > before).all())  # type: ignore[operator]
    qat(X)
    assert all(q.is_calibrated for _, q in tq.quantizers(qat))


def test_a_run_that_stops_in_the_middle_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    bits = {0: 4, 3: 2}
    whole, part = tq.prepare(net(), X, "w2a2"), tq.prepare(net(), X, "w2a2")
    train(whole, tq.training.QATSchedule(bits=bits), 5)
    schedule = tq.training.QATSchedule(bits=bits)
    train(part, schedule, 2)
    tq.save_checkpoint(tmp_path / "c.safetensors", model=part, extra=schedule.state_dict())
    again = net()
    checkpoint = tq.load_checkpoint(tmp_path / "c.safetensors", model=again)
    assert widths(again) == widths(part)
    assert torch.equal(again.eval()(X), part.eval()(X))
    schedule = tq.training.QATSchedule(bits=bits)
    schedule.load_state_dict(checkpoint.extra)
    again.train()
    train(again, schedule, 3)
    assert torch.equal(again.eval()(X), whole.eval()(X))


def test_frozen_ranges_refuse_another_width() -> None:
    qat = tq.prepare(net(), X, "w2a2")
    qat(X)
    tq.freeze(qat)
    with pytest.raises(StateError, match="the ranges are frozen, and another width needs others"):
        tq.training.QATSchedule(bits={0: 4}).step(qat)


@pytest.mark.parametrize("bits", [{0: 9}, {-1: 4}, {0: 2, 5: 3}, {0: 0}, {0.5: 4}])
def test_widths_that_are_none(bits: dict[int, int]) -> None:
    with pytest.raises(ArgumentError, match="QATSchedule"):
        tq.training.QATSchedule(bits=bits)
