"""Models around prepared ones, and prepared models taken apart: they work, or the error names the model to pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import truequant as tq
from truequant.errors import StateError

X = torch.rand(2, 3, 6, 6)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.Conv2d(4, 2, 3))


def prepared() -> nn.Module:
    return tq.calibrate(tq.prepare(net(), X), [X], progress=False)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)])
def test_averages_of_buffers(average: object) -> None:
    torch.manual_seed(0)
    qat = tq.prepare(net(), X)
    averaged = AveragedModel(qat, multi_avg_fn=average, use_buffers=True)  # type: ignore[arg-type]
    for step in range(3):
        qat.train()((1 + step) * X - step).sum().backward()
        averaged.update_parameters(qat)
    model = averaged.eval().module
    zero_points = [q.zero_point for q in model.modules() if isinstance(q, tq.FakeQuantize)]
    assert all(torch.equal(z, z.round()) for z in zero_points)
    report = tq.verify(model, tq.convert(model), [X], runtimes=("reference",))
    assert (report.codes_compared > 0, report.codes_different) == (True, 0)


def test_what_holds_a_prepared_model_is_named() -> None:
    with pytest.raises(StateError) as error:
        tq.convert(AveragedModel(prepared()))
    assert str(error.value) == (
        "AveragedModel holds the prepared model and is none itself\n  got:      AveragedModel\n"
        "  expected: the model in its 'module'\n  fix:      pass model.module"
    )
    with pytest.raises(StateError, match=r"pass model\._orig_mod"):
        tq.convert(torch.compile(prepared(), backend="eager"))


def test_a_compiled_model_is_refused_with_the_inner_one() -> None:
    compiled = torch.compile(net(), backend="eager")
    with pytest.raises(StateError) as error:
        tq.prepare(compiled, X)  # type: ignore[arg-type]
    assert str(error.value) == (
        "prepare: model is compiled, and what it calls cannot be seen\n  got:      OptimizedModule\n"
        "  expected: the module that was compiled\n  fix:      prepare(model._orig_mod, …), then torch.compile what it returns"
    )
    with pytest.raises(StateError, match=r"model\.0 = model\.0\._orig_mod, and compile after prepare"):
        tq.plan(nn.Sequential(compiled), X)  # type: ignore[arg-type]
    model = net()
    model.compile(backend="eager")
    with pytest.raises(StateError, match=r"call model\.compile\(\) after prepare"):
        tq.plan(model, X)


def test_a_model_that_is_wrapped_for_training_in_parallel_is_refused() -> None:
    model = nn.DataParallel(net())
    for refused in (lambda: tq.plan(model, X), lambda: tq.prepare(model, X)):
        with pytest.raises(StateError, match="is wrapped for training in parallel") as error:
            refused()
    assert str(error.value).endswith("fix:      prepare(model.module, …), then DataParallel(…) around what it returns")


def test_a_part_is_restored_and_not_converted() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.inner(x)
            return y

    part = tq.calibrate(tq.prepare(Outer(), X), [X], progress=False).inner
    with pytest.raises(StateError) as error:
        tq.convert(part)  # type: ignore[arg-type]
    assert str(error.value) == (
        "QATSequential is a part of a prepared model\n  fix:      pass the model that tq.prepare returned. Where adapters were "
        "merged: tq.convert before that, or tq.restore_float(model) and prepare anew"
    )
    restored = tq.restore_float(part)  # type: ignore[arg-type]
    assert type(restored) is nn.Sequential
    assert tq.plan(restored, X).quantizers
