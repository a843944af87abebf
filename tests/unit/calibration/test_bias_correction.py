"""Bias correction: the mean error of every layer's sums is gone, layer by layer, as the quantized model computes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.calibration.bias_correction import mean_error
from truequant.calibration.layers import layers
from truequant.calibration.method import Work
from truequant.calibration.progress import Bars
from truequant.fake import outermost
from truequant.planning import Takes, arguments_of


def net(norm: bool) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=not norm), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 5),
    ).eval()  # fmt: skip
    if norm:
        with torch.no_grad():
            model[1].running_mean.normal_()
            model[1].running_var.uniform_(0.5, 2)
            model[1].weight.normal_()
    return model


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("preset", ["w2a2-all", "w8a8-per-tensor"])
def test_mean_errors_vanish(norm: bool, preset: str) -> None:
    model, batches = net(norm), [torch.randn(16, 3, 8, 8) + 1 for _ in range(2)]
    qat = tq.prepare(model, batches[0], preset)
    tq.calibrate(qat, batches)
    root = outermost(qat)
    work = Work(root, tuple(arguments_of(b, Takes(), None) for b in batches), Bars(False))
    before = [mean_error(work, layer) for layer in layers(root, "a test")]
    tq.calibrate(qat, batches, tq.methods.BiasCorrection())
    # What is measured now is E[W~ x~] - E[W x] with corrected layers before it; biases cancel it.
    original = dict(model.named_modules())
    for layer, was in zip(layers(root, "a test"), before, strict=True):
        float_layer = original[layer.name]
        remaining = mean_error(work, layer)
        if layer.norm is None:
            moved = layer.module.bias.double() - float_layer.bias.double()
        else:
            moved = original["1"].running_mean.double() - layer.norm.running_mean.double()
        assert torch.allclose(moved, -remaining, atol=1e-5)
        assert was.abs().max() > 0
    assert tq.verify(qat, tq.convert(qat), batches, runtimes=["reference"]).codes_different == 0


def test_a_hand_made_layer() -> None:
    """One weight of 0.4 rounds to 0.5 on the grid of halves: with inputs of mean 3 the bias gives back 0.1 * 3."""
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.4]]))
        layer.bias.zero_()
    x = torch.tensor([[0.0, 2.0], [0.0, 4.0], [4.0, 3.0]])
    scheme = tq.QuantScheme(tq.types.int2, tq.PerChannel(0))  # ternary: -0.5, 0, 0.5
    qat = tq.prepare(nn.Sequential(layer), x, tq.QConfig(weight=scheme, output=None))
    tq.calibrate(qat, [x], tq.methods.BiasCorrection())
    assert float(qat[0].bias.detach()) == pytest.approx(-0.3, abs=0.02)  # the inputs themselves are rounded to 8 bits


def test_a_layer_without_a_place_is_named() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 4)
    with pytest.warns(UserWarning, match="BiasCorrection leaves 1 as it is: '0': it has neither a bias nor a BatchNorm"):
        tq.calibrate(tq.prepare(model, x), [x], tq.methods.BiasCorrection())


def loss(model: nn.Module, x: Tensor, wanted: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - wanted).square().mean())


def test_the_model_is_closer_to_the_float_model() -> None:
    model, x = net(True), torch.randn(64, 3, 8, 8) + 1
    fresh = torch.randn(64, 3, 8, 8) + 1
    wanted = model(fresh).detach()
    plain = tq.calibrate(tq.prepare(model, x, "w3a3-all"), [x]).eval()
    corrected = tq.calibrate(tq.prepare(model, x, "w3a3-all"), [x], tq.methods.BiasCorrection()).eval()
    assert loss(corrected, fresh, wanted) < 0.8 * loss(plain, fresh, wanted)
