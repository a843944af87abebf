"""In training, a weight whose scale is tied to its BatchNorm is quantized as the folded weight will be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import truequant as tq
from truequant.fake.batch_statistics import reads_float_statistics


def test_training_uses_the_grid_of_the_folded_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.2, -3.0, 1.0]))
        model[1].running_var.copy_(torch.tensor([4.0, 0.5, 1.0]))
    x = torch.randn(4, 2, 6, 6)
    qat = tq.prepare(model, x, "w8a8-per-tensor")
    quantizer = dict(tq.quantizers(qat))["0.weight"]
    used: list[Tensor] = []
    quantizer.register_forward_hook(lambda module, args, output: used.append(output.detach()))
    norm = qat[1]
    factor = (norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).detach().reshape(-1, 1, 1, 1)
    weight = qat[0].weight.detach().double()
    qat(x)
    codes = used[0].double() * factor / quantizer.scale.double()
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert torch.allclose(codes, weight * factor / quantizer.scale.double(), atol=0.501)
    assert codes.abs().max().round() == 127


def spread_pair() -> nn.Sequential:
    """Two channels: the second is too small on the first one's grid to have a code but 0."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([100.0, 0.01]))
    return model


def spread_model(x: Tensor, preset: str = "w8a8-per-tensor") -> nn.Module:
    qat = tq.prepare(spread_pair(), x, preset)
    tq.calibrate(qat, [x])
    return qat.train()


def test_running_statistics_are_those_of_the_float_weights_and_stay() -> None:
    """Those of the codes would fall with them: the factor would grow until the codes come back, again and again."""
    x = torch.randn(8, 1, 12, 12)
    qat, model = spread_model(x), spread_pair()
    model.load_state_dict({k: v for k, v in qat.state_dict().items() if k in model.state_dict()})
    with torch.no_grad():
        for _ in range(200):
            qat(x)
            model(x)
    # The quantized input is off by its rounding; the statistics of codes that are all 0 would be 0.
    assert torch.allclose(qat[1].running_var, model[1].running_var, rtol=1e-2)
    assert torch.allclose(qat[1].running_mean, model[1].running_mean, atol=1e-2)
    assert int(qat[1].num_batches_tracked) == 200
    with torch.no_grad():
        trained = qat(x)
        evaluated = qat.eval()(x)
    step = float(dict(tq.quantizers(qat))["2.output"].scale)
    assert float((trained - evaluated).abs().max()) <= 2 * step  # of 255: what is trained is what is evaluated


def test_gamma_learns_where_a_channel_has_no_code_but_zero() -> None:
    """Straight through: the gradient that gamma has of the float weight, as if it had not been quantized."""
    x = torch.randn(8, 1, 12, 12)
    qat = spread_model(x)
    seen: list[Tensor] = []
    quantizer = dict(tq.quantizers(qat))["0.weight"]
    quantizer.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    y = nn.functional.conv2d(x, qat[0].weight.detach())
    mean, sigma = y.mean((0, 2, 3), keepdim=True), y.std((0, 2, 3), keepdim=True, correction=0)
    weights = torch.randn(8, 2, 10, 10)
    (qat[1](qat[0](x)) * weights).sum().backward()
    assert not bool(seen[0][1].any())
    wanted = (weights * (y - mean) / sigma).sum((0, 2, 3))
    assert torch.allclose(qat[1].weight.grad, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_without_rounding_it_is_an_ordinary_batchnorm(momentum: float | None) -> None:
    """Results, gradients and running statistics, where the weights are codes and the factor is 1."""
    x, given = torch.randn(4, 1, 6, 6), torch.randn(4, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, eps=1e-12, momentum=momentum))
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-126, 127, (3, 1, 3, 3)).float())
        model[0].weight[0, 0, 0, 0] = 127.0
    qat = tq.prepare(model, x, tq.QConfig(weight=tq.QuantScheme(tq.types.int8), output=None, saturation="unsigned")).train()
    assert reads_float_statistics(next(iter(qat[0].binding.leaf.values())))
    found = []
    for module in (model, qat):
        y = module[1](module[0](x))  # no call of the model: its input is not quantized
        (y * given).sum().backward()
        found.append(y.detach())
    assert torch.allclose(*found, rtol=1e-4, atol=1e-4)
    for (name, p), q in zip(model.named_parameters(), qat.parameters(), strict=True):
        assert p.grad is not None
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-3 * max(float(p.grad.abs().max()), 1e-2)), name
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.allclose(getattr(model[1], name).float(), getattr(qat[1], name).float(), rtol=1e-4), name


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (tq.QuantScheme(tq.types.int8), True),
        (tq.QuantScheme(tq.types.int2, scale=tq.scales.LSQ()), True),
        (tq.QuantScheme(tq.types.int8, scale=tq.scales.PowerOfTwoScale()), True),
        (tq.QuantScheme(tq.types.int8, tq.PerChannel(0)), False),
        (
            tq.QuantScheme(tq.types.int8, tq.PerChannel(0), scale=tq.scales.PowerOfTwoScale()),
            False,
        ),  # a channel has its own grid
        (tq.QuantScheme(tq.types.int1), False),  # signs do not depend on the factor
    ],
)
def test_which_layers_pay_for_the_float_statistics(scheme: tq.QuantScheme, expected: bool) -> None:
    x = torch.randn(2, 1, 6, 6)
    qat = tq.prepare(spread_pair(), x, tq.QConfig(weight=scheme)).train()
    site = next(iter(qat[0].binding.leaf.values()))
    assert reads_float_statistics(site) is expected
    qat[1].eval()  # running statistics, frozen
    assert not reads_float_statistics(site)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_training_takes_the_same_statistics() -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 1, 12, 12)
    eager = spread_model(x)
    twin = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twin, backend=counter, fullgraph=True)
    for _ in range(3):
        for model in (eager, compiled):
            model(x).square().mean().backward()
    assert counter.frame_count == 1
    for (name, p), q in zip(eager.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-4, msg=name)
    for (name, p), q in zip(eager.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5, msg=name)
