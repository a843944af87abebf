"""Area 8: `QATPreparer`, and statistics of what each quantizer does."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant import QATPreparer
from truequant.errors import CalibrationError, PlanError, SchemeError, StateError
from truequant.schemes import PerChannel, QConfig, QuantScheme, Rule, int4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


X = torch.randn(16, 1, 6, 6)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_prepare_train_convert(net: Net) -> None:
    preparer = QATPreparer("w8a8")
    qat = preparer.prepare(net, X)
    optimizer = torch.optim.SGD(qat.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        qat(X).square().sum().backward()
        optimizer.step()
    int8 = preparer.convert(qat.eval())
    with torch.no_grad():
        assert torch.equal(int8(X), qat(X))
    assert int8.ops() == {"Conv": 1, "Dequantize": 1, "GlobalAverage": 1, "Linear": 1, "Quantize": 1}


def test_classes_and_functions_are_two_doors_to_the_same_code(net: Net) -> None:
    preparer = QATPreparer("w4a4")
    assert preparer.plan(net, X) == tq.plan(net, X, "w4a4")
    ours, theirs = preparer.prepare(net, X), tq.prepare(net, X, "w4a4")
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert preparer.prepare(net, X, inplace=True) is net


def test_layers_are_configured_one_by_one(net: Net) -> None:
    four = QuantScheme(int4, PerChannel(0))
    config = QConfig().with_rules(Rule("conv", weight=four), Rule("fc", None))
    qat = QATPreparer(config).prepare(net, X)
    found = QATPreparer(config).statistics(qat)
    assert found["conv.weight"].scheme == "int4 channel 0"
    assert [name for name, _ in found.in_float] == ["fc"]
    assert "fc stays float: Rule('fc', None)" in str(found)


# -- statistics ------------------------------------------------------------------------------------------------------------
def test_scales_ranges_and_weight_errors_are_those_of_the_formulas(net: Net) -> None:
    qat = tq.prepare(net, X)
    tq.calibrate(qat, [X])
    found = tq.statistics(qat)
    weight = found["fc.weight"]
    w = qat.get_parameter("fc.weight").detach().double()
    scale = (qat.get_parameter("fc.weight").detach().abs().amax(1) / 64).double()
    quantized = torch.clamp(torch.round(w / scale[:, None]), -64, 64) * scale[:, None]
    assert weight.scale == pytest.approx(scale.tolist())
    assert weight.maximum == pytest.approx((64 * scale).tolist())
    assert weight.clipped == 0.0
    assert weight.weight_error == pytest.approx(float(((w - quantized).square().sum() / w.square().sum()).sqrt()))
    assert weight.sqnr == pytest.approx(float(10 * torch.log10(w.square().sum() / (w - quantized).square().sum())))
    assert (weight.zero_point, weight.updates) == ((0,), 0)
    entry = found["input_0"]
    assert (entry.minimum[0], entry.maximum[0]) == pytest.approx((float(X.min()), float(X.max())), abs=entry.scale[0])
    assert entry.updates == 1


def test_activation_figures_come_from_the_batches_given(net: Net) -> None:
    qat = tq.prepare(net, X)
    tq.calibrate(qat, [X])
    before = {k: v.clone() for k, v in qat.state_dict().items()}
    found = tq.statistics(qat, [2 * X, 2 * X])["input_0"]
    scale, zero = found.scale[0], found.zero_point[0]
    codes = torch.round(2 * X / torch.tensor(scale)) + zero
    y = (codes.clamp(0, 255) - zero) * torch.tensor(scale)
    assert found.clipped == pytest.approx(float(((codes < 0) | (codes > 255)).double().mean()))
    signal, noise = (2 * X).double().square().sum(), (2 * X - y).double().square().sum()
    assert found.sqnr == pytest.approx(float(10 * torch.log10(signal / noise)), rel=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in qat.state_dict().items())
    assert qat.training


def test_without_batches_the_last_observed_step_tells_what_it_can(net: Net) -> None:
    qat = tq.prepare(net, X)
    qat(X)
    qat(X)  # its extremes are pending, inside the range of the first
    inside = tq.statistics(qat)["input_0"]
    assert (inside.clipped, inside.sqnr) == (0.0, None)
    qat(5 * X)
    assert tq.statistics(qat)["input_0"].clipped is None


def test_updates_and_states(net: Net) -> None:
    qat = tq.prepare(net, X)
    assert {q.state for q in tq.statistics(qat).quantizers if q.kind == "activation"} == {"uncalibrated"}
    for _ in range(4):
        qat(X)
    assert tq.statistics(qat)["input_0"].updates == 3  # the fourth is pending
    tq.freeze(qat)
    found = tq.statistics(qat)
    assert found.state == "frozen"
    assert {q.state for q in found.quantizers} == {"frozen"}


def test_table_dict_and_json_say_the_same(net: Net) -> None:
    qat = tq.prepare(net, X)
    tq.calibrate(qat, [X])
    found = tq.statistics(qat, [X])
    parsed = json.loads(found.to_json())
    assert parsed == found.to_dict()
    rows = {q["name"]: q for q in parsed["quantizers"]}
    assert set(rows) == {n for n, _ in tq.quantizers(qat)}
    assert rows["input_0"]["scale"] == list(found["input_0"].scale)
    table = found.table()
    assert len(table.splitlines()) == 1 + len(rows)
    for name in rows:
        assert name in table
    (line,) = (line for line in table.splitlines() if line.startswith("input_0"))
    assert f" {found['input_0'].scale[0]:.4g} " in line  # one number of one scale, a span of several
    (several,) = (q for q in found.quantizers if q.kind == "weight" and len(q.scale) == 4)
    (line,) = (line for line in table.splitlines() if line.startswith(several.name))
    assert f" {min(several.scale):.4g} … {max(several.scale):.4g} " in line
    assert not any(isinstance(v, float) and not math.isfinite(v) for q in rows.values() for v in q["scale"])


# -- wrong order -----------------------------------------------------------------------------------------------------------
def test_convert_before_calibration_names_what_is_missing(net: Net) -> None:
    preparer = QATPreparer()
    qat = preparer.prepare(net, X)
    with pytest.raises(CalibrationError, match="4 ranges were never observed: .*'input_0'") as caught:
        preparer.convert(qat)
    assert "tq.calibrate(model, batches)" in str(caught.value)


def test_evaluation_before_calibration_names_the_site(net: Net) -> None:
    qat = QATPreparer().prepare(net, X).eval()
    with pytest.raises(CalibrationError, match="'input_0' has no range"):
        qat(X)


@pytest.mark.parametrize("call", [lambda p, m: p.convert(m), lambda p, m: p.statistics(m)])
def test_a_float_model_is_refused(net: Net, call: object) -> None:
    with pytest.raises(StateError, match="Net is not prepared"):
        call(QATPreparer(), net)  # type: ignore[operator]


def test_a_part_of_a_prepared_model_is_refused(net: Net) -> None:
    qat = QATPreparer().prepare(net, X)
    with pytest.raises(StateError, match="QATConv2d is a part of a prepared model"):
        tq.convert(qat.get_submodule("conv"))


def test_prepared_twice(net: Net) -> None:
    preparer = QATPreparer()
    with pytest.raises(StateError, match="the model is prepared already"):
        preparer.prepare(preparer.prepare(net, X), X)


def test_wrong_configs(net: Net) -> None:
    with pytest.raises(SchemeError, match="no preset 'w9a9'"):
        QATPreparer("w9a9")
    with pytest.raises(SchemeError, match="QATPreparer: no config"):
        QATPreparer(8)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="matches nothing"):
        QATPreparer(QConfig().with_rules(Rule("head", None))).prepare(net, X)


def test_calibrating_nothing_or_a_frozen_model(net: Net) -> None:
    qat = QATPreparer().prepare(net, X)
    with pytest.raises(ValueError, match="there were no batches"):
        tq.calibrate(qat, [])
    tq.calibrate(qat, [(X, torch.zeros(16))])
    tq.freeze(qat)
    with pytest.raises(StateError, match="the ranges are frozen"):
        tq.calibrate(qat, [X])
