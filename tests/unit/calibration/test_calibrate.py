"""`calibrate(method=…)`: order, range setting by another strategy, modes, and what it refuses."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import truequant as tq
from truequant.errors import ArgumentError, ArgumentTypeError
from truequant.fake import FakeQuantize


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def activations(qat: nn.Module) -> list[FakeQuantize]:
    return [q for _, q in tq.quantizers(qat) if isinstance(q, FakeQuantize)]


@pytest.mark.parametrize(
    "strategy", [tq.ranges.MinMax(), tq.ranges.Percentile(95.0), tq.ranges.MSE(), tq.ranges.Entropy(), tq.ranges.Histogram()]
)
@pytest.mark.parametrize("preset", ["w8a8", "w4a4-all"])
def test_ranges_are_those_of_a_model_whose_schemes_say_so(strategy: object, preset: str) -> None:
    model, batches = net(), [torch.randn(64, 6) ** 3 for _ in range(3)]
    config = tq.QConfig.preset(preset)
    asked = tq.calibrate(tq.prepare(model, batches[0], config), batches, strategy)  # type: ignore[arg-type]
    said = tq.calibrate(tq.prepare(model, batches[0], config.with_observer(strategy)), batches)  # type: ignore[arg-type]
    for a, b in zip(activations(asked), activations(said), strict=True):
        assert torch.equal(a.effective_scale(), b.effective_scale())
        assert torch.equal(a.zero_point, b.zero_point)
    scales = [q.effective_scale().clone() for q in activations(asked)]
    asked.train()
    asked.eval()  # commits what is pending: nothing
    assert all(torch.equal(q.effective_scale(), s) for q, s in zip(activations(asked), scales, strict=True))


def test_training_goes_on_from_the_range_that_was_set() -> None:
    model, x = net(), torch.randn(64, 6) ** 3
    qat = tq.calibrate(tq.prepare(model, x), [x], tq.ranges.Percentile(90.0)).train()
    quantizer = next(q for q in activations(qat) if q.name == "input_0")
    low, high = quantizer.observer.minimum.clone(), quantizer.observer.maximum.clone()
    qat(x)
    qat(x)
    assert torch.isclose(quantizer.observer.maximum, 0.9 * high + 0.1 * x.max(), rtol=1e-6)
    assert torch.isclose(quantizer.observer.minimum, 0.9 * low + 0.1 * x.min(), rtol=1e-6)


def test_modes_stay_and_a_generator_is_enough() -> None:
    model, x = net(), torch.randn(16, 6)
    qat = tq.prepare(model, x).train()
    qat[0].eval()
    tq.calibrate(qat, (x for _ in range(3)), [tq.methods.CrossLayerEqualization(), tq.methods.BiasCorrection()])
    assert qat.training
    assert not qat[0].training


def test_an_order_that_undoes_a_method_is_refused() -> None:
    x = torch.randn(16, 6)
    qat = tq.prepare(net(), x)
    for steps in (
        [tq.methods.BiasCorrection(), tq.methods.CrossLayerEqualization()],
        [tq.methods.BiasCorrection(), tq.ranges.MSE()],
        [tq.ranges.MSE(), tq.ranges.MinMax()],
    ):
        with pytest.raises(ArgumentError, match="in an order that undoes one of them"):
            tq.calibrate(qat, [x], steps)
    with pytest.raises(ArgumentTypeError, match=re.escape("calibrate: not a method\n  got:      'adaround'")):
        tq.calibrate(qat, [x], ["adaround"])  # type: ignore[list-item]
    with pytest.raises(ArgumentTypeError, match="not a method"):
        tq.calibrate(qat, [x], 3)  # type: ignore[arg-type]


def test_no_batches_lose_nothing() -> None:
    x = torch.randn(16, 6)
    qat = tq.calibrate(tq.prepare(net(), x), [x])
    scales = [q.scale.clone() for q in activations(qat)]
    for method in (None, tq.methods.BiasCorrection()):
        with pytest.raises(ArgumentError, match="there were no batches"):
            tq.calibrate(qat, [], method)
    assert all(torch.equal(q.scale, s) for q, s in zip(activations(qat), scales, strict=True))


def test_a_bar_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(16, 6)
    tq.calibrate(tq.prepare(net(), x), [x], tq.methods.BiasCorrection())
    assert capsys.readouterr().err == ""
    tq.calibrate(tq.prepare(net(), x), [x], tq.methods.BiasCorrection(), progress=True)
    assert "bias correction" in capsys.readouterr().err
