"""SmoothQuant: its formula, the float function, and fewer errors where one feature is an outlier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.calibration.method import Work
from truequant.calibration.progress import Bars
from truequant.calibration.smoothquant import smoothable, smoothing
from truequant.errors import ArgumentError
from truequant.fake import outermost
from truequant.planning import Takes, arguments_of


def groups(qat: nn.Module, x: Tensor) -> list[tuple[nn.Module, int, int]]:
    found = smoothable(Work(outermost(qat), (arguments_of(x, Takes(), None),), Bars(False)))
    return [(g.norm, len(g.layers), len(g.functional)) for g in found]


class RootMeanSquare(nn.Module):
    """A norm as users write it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(features) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Gated(nn.Module):
    """Two linear layers read one norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.up, self.gate, self.down = norm, nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def encoder(first: bool = True) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=first)
    with torch.no_grad():
        layer.self_attn.in_proj_bias.normal_()
    return layer.eval()


MODELS = {
    "encoder": (encoder, 2),
    "layer norm": (lambda: Gated(nn.LayerNorm(16)), 1),
    "without bias": (lambda: Gated(nn.LayerNorm(16, bias=False)), 1),
    "rms norm": (lambda: Gated(nn.RMSNorm(16)), 1),
    "own norm": (lambda: Gated(RootMeanSquare(16)), 1),
}


def outlier(model: nn.Module) -> nn.Module:
    """A few features of every norm are fifty times as large as the others, and their weights as small."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p[[3, 7]] *= 50
            elif name.split(".")[-2] in ("self_attn", "linear1", "up", "gate") and p.dim() == 2:
                p[:, [3, 7]] /= 50
    return model.eval()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("preset", ["w8a8", "w4a4-all"])
def test_float_function_stays_and_errors_shrink(kind: str, preset: str) -> None:
    make, count = MODELS[kind]
    model, x = outlier(make()), torch.randn(8, 6, 16)
    wanted = model(x).detach()
    assert len(groups(tq.prepare(model, x, preset), x)) == count
    plain = tq.calibrate(tq.prepare(model, x, preset), [x]).eval()
    smooth = tq.calibrate(tq.prepare(model, x, preset), [x], tq.methods.SmoothQuant()).eval()
    with tq.quantizers_off(smooth):
        assert torch.allclose(smooth(x), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert tq.verify(smooth, tq.convert(smooth), [x], runtimes=("reference", "onnxruntime")).codes_different == 0
    if preset == "w8a8":
        errors = [float((m(x) - wanted).square().mean().detach()) for m in (plain, smooth)]
        assert errors[1] < 0.7 * errors[0]


def test_the_formula() -> None:
    x, w = torch.tensor([4.0, 100.0, 0.0, 1.0]), torch.tensor([1.0, 0.25, 3.0, 0.0])
    assert smoothing(x, w, 0.5).tolist() == pytest.approx([2.0, 20.0, 1.0, 1.0])
    assert smoothing(x, w, 1.0).tolist() == pytest.approx([4.0, 100.0, 1.0, 1.0])
    model, x = outlier(Gated(nn.LayerNorm(16))), torch.randn(8, 6, 16)
    reach = model.norm(x).abs().amax((0, 1)).detach().double()
    weights = torch.maximum(model.up.weight.abs().amax(0), model.gate.weight.abs().amax(0)).detach().double()
    qat = tq.calibrate(tq.prepare(model, x), [x], tq.methods.SmoothQuant(0.75))
    s = reach**0.75 / weights**0.25
    assert torch.allclose(qat.norm.weight.detach().double(), model.norm.weight.detach().double() / s, rtol=1e-5)
    assert torch.allclose(qat.up.weight.detach().double(), model.up.weight.detach().double() * s, rtol=1e-5)
    assert torch.allclose(qat.gate.weight.detach().double(), model.gate.weight.detach().double() * s, rtol=1e-5)


def test_a_norm_that_a_residual_reads_is_left_alone() -> None:
    x = torch.randn(8, 6, 16)
    qat = tq.prepare(encoder(first=False), x)
    assert groups(qat, x) == []
    before = [p.detach().clone() for p in qat.parameters()]
    tq.calibrate(qat, [x], tq.methods.SmoothQuant())
    assert all(torch.equal(a, b) for a, b in zip(before, qat.parameters(), strict=True))


def test_training_goes_on() -> None:
    x = torch.randn(8, 6, 16)
    qat = tq.calibrate(tq.prepare(outlier(encoder()), x, "w8a8"), [x], [tq.methods.SmoothQuant(), tq.ranges.MSE()]).train()
    optimizer = torch.optim.SGD(qat.parameters(), 1e-3)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = qat(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_alpha_is_a_share() -> None:
    with pytest.raises(ArgumentError, match="SmoothQuant: alpha out of range"):
        tq.methods.SmoothQuant(1.5)
