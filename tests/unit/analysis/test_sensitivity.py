"""Sensitivity: each quantizer alone and left out, against a model in which the others were taken out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ArgumentError, CalibrationError
from truequant.fake import FakeQuantize, outermost


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(F.relu(self.norm(self.conv(x))).mean((2, 3))))


def prepared(preset: str = "w4a4-all") -> tuple[nn.Module, Tensor]:
    x = torch.randn(32, 2, 6, 6)
    return tq.calibrate(tq.prepare(Net().eval(), x, preset), [x]), x


@pytest.mark.parametrize("preset", ["w4a4-all", "w8a8-per-tensor"])
def test_each_figure_is_that_of_a_model_with_the_other_quantizers_gone(preset: str) -> None:
    qat, x = prepared(preset)
    qat.eval()
    with tq.quantizers_off(qat):
        wanted = qat(x).detach().double()
    found = tq.sensitivity(qat, [x])
    assert {s.name for s in found.sites} == {name for name, _ in tq.quantizers(qat)}
    assert found.floating == 0.0
    assert found["fc.weight"].kind == "weight"
    assert found["input_0"].kind == "activation"

    def relative(y: Tensor) -> float:
        return float((y.detach().double() - wanted).square().sum() / wanted.square().sum())

    weight = qat.fc.weight.detach().clone()
    quantizer = dict(tq.quantizers(qat))["fc.weight"]
    with torch.no_grad():
        scale = quantizer.scale_of(weight).reshape(-1, 1) if preset != "w8a8-per-tensor" else quantizer.scale_of(weight)
        qat.fc.weight.copy_(quantizer.codes(weight) * scale)
        with tq.quantizers_off(qat):
            assert found["fc.weight"].only == pytest.approx(relative(qat(x)), rel=1e-6)
        qat.fc.weight.copy_(weight)
    source = dict(tq.quantizers(qat))["input_0"]
    assert isinstance(source, FakeQuantize)
    with tq.quantizers_off(qat):
        assert found["input_0"].only == pytest.approx(relative(qat(source.quantize(x))), rel=1e-6)
    # Simulated on floats, and computed on codes with rounded biases, the whole is nearly the same.
    assert found.quantized == pytest.approx(relative(qat(x)), rel=0.1)


def test_the_model_stays_as_it_is() -> None:
    qat, x = prepared()
    qat.train()
    qat.fc.eval()
    state = {n: t.clone() for n, t in qat.state_dict().items()}
    modes = [m.training for m in qat.modules()]
    tq.sensitivity(qat, [x, x])
    assert all(torch.equal(state[n], t) for n, t in qat.state_dict().items())
    assert modes == [m.training for m in qat.modules()]
    assert outermost(qat).binding.clock.state == "training"
    assert not any("forward" in m.__dict__ for m in qat.modules())


def test_the_worst_site_is_found() -> None:
    x = torch.randn(64, 2, 6, 6)
    config = tq.QConfig().with_rules(tq.Rule("fc", weight=tq.QuantScheme(tq.types.int2, tq.PerChannel(0))))
    qat = tq.calibrate(tq.prepare(Net().eval(), x, config), [x])
    found = tq.sensitivity(qat, [x])
    assert found.ranking()[0].name == "fc.weight"
    assert min(found.sites, key=lambda s: s.all_but).name == "fc.weight"
    assert "fc.weight" in str(found).splitlines()[1]
    assert found.to_dict()["sites"][0]["name"] == found.sites[0].name


def test_a_metric_with_labels() -> None:
    qat, x = prepared()
    labels = torch.randint(0, 4, (32,))
    found = tq.sensitivity(qat, [(x, labels)], lambda y, item: F.cross_entropy(y, item[1]).item())
    with tq.quantizers_off(qat.eval()):
        assert found.floating == pytest.approx(F.cross_entropy(qat(x), labels).item(), rel=1e-6)
    assert all(s.only > 0 for s in found.sites)


def test_bad_input() -> None:
    qat, x = prepared()
    with pytest.raises(ArgumentError, match="sensitivity: there were no batches"):
        tq.sensitivity(qat, [])
    with pytest.raises(ArgumentError, match="metric: not a number"):
        tq.sensitivity(qat, [x], lambda y, item: "good")  # type: ignore[arg-type, return-value]
    with pytest.raises(ArgumentError, match="metric: not a number"):
        tq.sensitivity(qat, [x], lambda y, item: float("nan"))
    with pytest.raises(CalibrationError, match="has no range"):
        tq.sensitivity(tq.prepare(Net(), x), [x])
