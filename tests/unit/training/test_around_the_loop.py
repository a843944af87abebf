"""What helps a user's own loop: BatchNorm estimated again, dampening, distillation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ArgumentError, StateError
from truequant.schemes import LSQ, PerTensor, QuantScheme, int1, int4


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3))


def batches(n: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(8, 1, 6, 6) * (1 + k) for k in range(n)]


# -- BatchNorm ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preset", ["w4a4", "w8a8-per-tensor"])
def test_statistics_are_means_over_batches_of_the_quantized_layer(preset: str) -> None:
    torch.manual_seed(0)
    data = batches(5)
    qat = tq.calibrate(tq.prepare(net(), data[0], preset), data)
    qat(data[0]).sum().backward()  # running statistics are now something else
    before, modes = copy.deepcopy(qat.state_dict()), [m.training for m in qat.modules()]
    conv = qat.get_submodule("0")
    seen: list[Tensor] = []
    handle = conv.register_forward_hook(lambda m, a, y: seen.append(y.detach().double()))
    tq.training.reestimate_batchnorm(qat, data)
    handle.remove()
    norm = qat.get_submodule("1")
    means = torch.stack([y.mean((0, 2, 3)) for y in seen[-5:]]).mean(0)
    variances = torch.stack([y.var((0, 2, 3), unbiased=True) for y in seen[-5:]]).mean(0)
    assert torch.allclose(norm.running_mean.double(), means, rtol=1e-5)  # type: ignore[union-attr, operator]
    assert torch.allclose(norm.running_var.double(), variances, rtol=1e-5)  # type: ignore[union-attr, operator]
    quantized = conv.get_submodule("quantizers.weight")
    x = qat.get_submodule("quantizers.input_0")
    factor = None if preset == "w4a4" else _factor(before)
    x.training = quantized.training = False  # unlike eval(), commits nothing
    wq = quantized(conv.weight.detach(), factor)  # type: ignore[union-attr, operator]
    expected = F.conv2d(x(data[2]), wq, conv.bias.detach())  # type: ignore[union-attr]
    assert torch.allclose(seen[-3], expected.double(), atol=1e-4)
    changed = [k for k, v in qat.state_dict().items() if not torch.equal(v, before[k])]
    assert sorted(changed) == ["1.running_mean", "1.running_var"]
    x.training = quantized.training = True
    assert [m.training for m in qat.modules()] == modes
    assert norm.momentum == 0.1  # type: ignore[union-attr]


def _factor(state: dict[str, Tensor]) -> Tensor:
    return state["1.weight"].double() / (state["1.running_var"].double() + 1e-5).sqrt()


def test_a_model_whose_forward_calls_functions() -> None:
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.linear = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(F.max_pool2d(F.relu(self.norm(self.conv(x))), 4).flatten(1))
            return y

    data = batches(3)
    qat = tq.calibrate(tq.prepare(Functions(), data[0], "w4a4"), data)
    before = qat.get_submodule("norm").running_mean.clone()  # type: ignore[union-attr, operator]
    tq.training.reestimate_batchnorm(qat, data)
    assert not torch.equal(qat.get_submodule("norm").running_mean, before)  # type: ignore[arg-type]


def test_no_batches_and_float_models_are_errors() -> None:
    qat = tq.prepare(net(), batches(1)[0])
    with pytest.raises(ArgumentError, match="there were no batches"):
        tq.training.reestimate_batchnorm(qat, [])
    with pytest.raises(StateError, match="is not prepared"):
        tq.training.reestimate_batchnorm(net(), batches(1))
    with pytest.raises(StateError, match="is not prepared"):
        tq.training.oscillation_dampening(net())


# -- dampening ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("per_tensor", [False, True])
def test_dampening_draws_weights_to_their_codes_and_trains_no_scale(per_tensor: bool) -> None:
    torch.manual_seed(2)
    kind = QuantScheme(int4, scale=LSQ()) if per_tensor else tq.QConfig.preset("w4a4").weight
    assert kind is not None
    qat = tq.calibrate(tq.prepare(net(), batches(1)[0], tq.QConfig(weight=kind)), batches(1))
    with torch.no_grad():
        for _, quantizer in tq.quantizers(qat):
            quantizer.scale.mul_(0.6)  # some weights are clipped
    loss = tq.training.oscillation_dampening(qat)
    loss.backward()
    total = 0.0
    state = {k: v.detach().double() for k, v in qat.state_dict().items()}
    for name in ("0", "5"):
        w, s = state[f"{name}.weight"], state[f"{name}.quantizers.weight.scale"]
        s = s.reshape(-1, *([1] * (w.dim() - 1))) if not isinstance(kind.granularity, PerTensor) else s
        if name == "0" and per_tensor:  # the scale is that of the weight with its BatchNorm in it
            s = s / _factor(qat.state_dict()).abs().reshape(-1, 1, 1, 1)
        target = torch.clamp(torch.round(w / s), -7, 7) * s
        error = torch.clamp(w, -7 * s, 7 * s) - target
        total += float(error.square().sum())
        expected = torch.where(w.abs() < 7 * s, 2 * error, 0.0)
        gradient = qat.get_submodule(name).weight.grad.double()  # type: ignore[union-attr, operator]
        assert torch.allclose(gradient, expected, atol=1e-6)
        assert bool((expected == 0).any())
        assert bool((expected != 0).any())
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)
    assert all(p.grad is None for _, q in tq.quantizers(qat) for p in q.learned_parameters())


def test_dampening_leaves_wide_and_binary_weights_alone() -> None:
    for scheme in (tq.QuantScheme(tq.types.int8), QuantScheme(int1)):
        qat = tq.prepare(net(), batches(1)[0], tq.QConfig(weight=scheme))
        assert float(tq.training.oscillation_dampening(qat)) == 0.0


# -- distillation ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_with_its_closed_gradient(temperature: float) -> None:
    torch.manual_seed(3)
    student, teacher = nn.Linear(5, 4), nn.Linear(5, 4)
    x = torch.randn(6, 5)
    logits = student(x).detach().requires_grad_()
    distillation = tq.training.Distillation(student, teacher, temperature=temperature)
    loss = distillation(logits, x)
    loss.backward()
    p, q = (torch.softmax(v.detach().double() / temperature, -1) for v in (teacher(x), logits))
    assert float(loss.detach()) == pytest.approx(float((p * (p.log() - q.log())).sum(1).mean()) * temperature**2, rel=1e-5)
    assert torch.allclose(logits.grad.double(), temperature * (q - p) / 6, atol=1e-7)  # type: ignore[union-attr]
    assert all(v.grad is None for v in teacher.parameters())


def test_features_are_compared_relative_to_the_teachers() -> None:
    torch.manual_seed(4)
    data = batches(1)[0]
    model = net()
    qat = tq.prepare(copy.deepcopy(model), data)
    qat(data)
    with tq.training.Distillation(qat, model, features={"2": 0.3}) as distillation:
        plain = tq.training.Distillation(qat, model)
        outputs = qat(data)
        whole, logits = distillation(outputs, data), plain(outputs, data)
        assert not model.training
        ours, theirs = qat.get_submodule("2"), model
        assert ours is not theirs
        f_s = qat[:3](data).detach()  # type: ignore[index]
        f_t = model[:3](data).detach()  # type: ignore[index]
        assert float((whole - logits).detach()) == pytest.approx(
            0.3 * float((f_s - f_t).square().sum() / f_t.square().sum()), rel=1e-3
        )
        whole.backward()
        assert bool(qat.get_submodule("0").weight.grad.abs().sum() > 0)  # type: ignore[union-attr, operator]
    assert not qat.get_submodule("2")._forward_hooks


def test_what_cannot_be_distilled_is_named() -> None:
    model = net()
    qat = tq.prepare(copy.deepcopy(model), batches(1)[0])
    with pytest.raises(ArgumentError, match="share parameters"):
        tq.training.Distillation(qat, qat)
    with pytest.raises(ArgumentError, match="no module 'layer9'"):
        tq.training.Distillation(qat, model, features={"layer9": 1.0})
    with pytest.raises(ArgumentError, match="temperature is not positive"):
        tq.training.Distillation(qat, model, temperature=0.0)
    with pytest.raises(ArgumentError, match="different shapes"):
        tq.training.Distillation(qat, model)(torch.zeros(8, 7), batches(1)[0])
    with pytest.raises(ArgumentError, match="'2' does not return a tensor of one shape"):
        tq.training.Distillation(qat, model, features={"2": 1.0})(torch.zeros(8, 3), batches(1)[0])
