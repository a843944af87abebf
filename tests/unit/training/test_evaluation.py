"""`evaluate` with torchmetrics' real metrics, on every form of a model; `figures`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import truequant as tq
from truequant.errors import ArgumentError, StateError


def test_every_form_of_a_model_has_the_same_figures() -> None:
    x, y = torch.randn(40, 6), torch.arange(40) % 3
    batches = [(x[:24], y[:24]), (x[24:], y[24:])]
    qat = tq.prepare(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), x, "w4a4-all")
    tq.calibrate(qat, [x])
    qat.train()
    int8 = tq.convert(qat)
    found = []
    for form in (qat, int8, tq.compile(int8, "onnxruntime")):
        metrics = MetricCollection({"top1": MulticlassAccuracy(3, average="micro"), "confusion": MulticlassConfusionMatrix(3)})
        found.append(tq.evaluate(form, batches, metrics))
    assert qat.training
    expected = (qat.eval()(x).argmax(1) == y).double().mean()
    assert all(float(result["top1"]) == pytest.approx(float(expected)) for result in found)
    assert all(torch.equal(result["confusion"], found[0]["confusion"]) for result in found)
    assert int(found[0]["confusion"].sum()) == 40


def test_predictions_and_inputs_of_several_forms() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": a + b}

    a, y = torch.eye(3), torch.arange(3)
    for item in ((a, a), [a, a], {"a": a, "b": a}):
        metric = MulticlassAccuracy(3, average="micro")
        assert float(tq.evaluate(Two(), [(item, y)], metric, predictions=lambda outputs: outputs["logits"])) == 1.0


def test_what_evaluate_refuses() -> None:
    metric = MulticlassAccuracy(3)
    with pytest.raises(ArgumentError, match="there were no batches"):
        tq.evaluate(nn.Identity(), [], metric)
    with pytest.raises(ArgumentError, match="a batch is no pair"):
        tq.evaluate(nn.Identity(), [torch.eye(3)], metric)


def test_figures_are_of_quantizers_and_their_extremes() -> None:
    x = torch.randn(16, 6)
    qat = tq.calibrate(tq.prepare(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), x), [x])
    found = tq.training.figures(qat, [x], prefix="p")
    errors = [value for name, value in found.items() if name.startswith("p/weight_error/")]
    assert len(errors) == 2
    assert found["p/weight_error"] == max(errors)
    assert found["p/sqnr"] == min(value for name, value in found.items() if name.startswith("p/sqnr/"))
    with pytest.raises(StateError):
        tq.training.figures(nn.Linear(2, 2))
