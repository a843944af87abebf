"""Factors and biases of channels, whoever computes them: folded into the layer before them, or integer layers of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.parity.trained import codes_are_equal
from tests.parity.trained import trained as steps_of
from truequant.errors import FileError, PlanError


class FrozenNorm(nn.Module):
    """A BatchNorm written out on buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(channels) - 0.3)
        self.register_buffer("bias", torch.randn(channels))
        self.register_buffer("running_mean", torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        w, b, m, v = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_mean, self.running_var))
        scale = w * (v + 1e-5).rsqrt()
        return x * scale + (b - m * scale)


class Scale(nn.Module):
    """A learned factor a channel, written in several ways."""

    def __init__(self, channels: int, way: str = "left") -> None:
        super().__init__()
        self.gamma, self.way = nn.Parameter(torch.rand(channels) + 0.1), way

    def forward(self, x: Tensor) -> Tensor:
        match self.way:
            case "left":
                return self.gamma[:, None, None] * x
            case "in place":
                return x.mul_(self.gamma.view(1, -1, 1, 1))
            case "divided":
                return x / self.gamma.unsqueeze(1).unsqueeze(2)
            case "exponent":
                return x * (-self.gamma).exp().reshape(-1, 1, 1)
            case _:
                return (1 / self.gamma[:, None, None]) * x


class Shift(nn.Module):
    def __init__(self, channels: int, way: str = "add") -> None:
        super().__init__()
        self.beta, self.way = nn.Parameter(torch.randn(channels, 1, 1)), way

    def forward(self, x: Tensor) -> Tensor:
        match self.way:
            case "add":
                return self.beta + x
            case "in place":
                x += self.beta
                return x
            case "subtracted":
                return x - self.beta
            case _:
                return self.beta - x


class Both(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.rand(1, channels, 1, 1)), nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class Block(nn.Module):
    """The factor lies behind a linear layer and a permutation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.wide, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(F.relu(self.wide(self.deep(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return x + y * self.gamma.reshape(1, -1, 1, 1)


def trained(model: nn.Module, config: str, steps: int = 2) -> nn.Module:
    return steps_of(model, config, steps, rate=0.02)


def census(qat: nn.Module, tmp_path: Path) -> dict[str, int]:
    return codes_are_equal(qat, torch.rand(2, 3, 9, 9), tmp_path).ops()


def folded(between: type[nn.Module], *options: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), between(8, *options), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), between(6, *options)
    )  # fmt: skip


WAYS: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (FrozenNorm, ()), (Scale, ("left",)), (Scale, ("in place",)), (Scale, ("divided",)), (Scale, ("exponent",)),
    (Scale, ("reciprocal",)), (Shift, ("add",)), (Shift, ("in place",)), (Shift, ("subtracted",)), (Shift, ("from",)),
    (Both, ()),
)  # fmt: skip


@pytest.mark.parametrize("config", ["int8", "w8a8-per-tensor"])
@pytest.mark.parametrize(("between", "options"), WAYS)
def test_a_map_behind_a_layer_is_computed_with_it(
    between: type[nn.Module], options: tuple[str, ...], config: str, tmp_path: Path
) -> None:
    qat = trained(folded(between, *options), config)
    assert census(qat, tmp_path) == {"Quantize": 1, "Conv": 2, "Dequantize": 1}


@pytest.mark.parametrize(("between", "options"), WAYS)
def test_a_map_that_stands_alone_is_one_integer_layer(
    between: type[nn.Module], options: tuple[str, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    qat = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), between(8, *options), nn.ReLU()), "int8")
    assert census(qat, tmp_path) == {"Quantize": 1, "Conv": 2, "Table": 1, "Dequantize": 1}


@pytest.mark.parametrize("config", ["int8", "w8a8-per-tensor"])
def test_maps_fold_one_after_another_and_behind_batchnorm(config: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Scale(8), Shift(8), nn.ReLU(), nn.Conv2d(8, 8, 1), Shift(8), Both(8), nn.SiLU(),
        nn.BatchNorm2d(8), Scale(8),
    )  # fmt: skip
    qat = trained(model, config)
    assert census(qat, tmp_path) == {"Quantize": 1, "Conv": 3, "Table": 1, "Dequantize": 1}


@pytest.mark.parametrize("config", ["int8", "w8a8-per-tensor"])
def test_a_factor_behind_a_permuted_linear_layer_folds(config: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    qat = trained(nn.Sequential(nn.Conv2d(3, 8, 3), Block(8), Block(8)), config)
    assert qat.binding.plan.site("1.mul_0").fused_into == "1.narrow"
    ops = census(qat, tmp_path)
    assert ops["Conv"] == 3
    assert ops["Linear"] == 4
    assert "Island" not in ops
    assert "Mul" not in ops


@pytest.mark.parametrize(("between", "options"), WAYS)
def test_the_folded_layer_computes_what_the_float_model_computes(between: type[nn.Module], options: tuple[str, ...]) -> None:
    """The factor of every way is read rightly: a wrong one would be far from the float model, not a code from it."""
    model, batches = folded(between, *options).eval(), [torch.rand(8, 3, 9, 9)]
    qat = tq.calibrate(tq.prepare(model, batches[0]), batches).eval()
    expected, found = model(batches[0]), qat(batches[0])
    noise = (expected - found).square().sum() / expected.square().sum()
    assert float(10 * torch.log10(noise.detach())) < -25


def test_the_bias_before_a_factor_is_rounded_in_training_as_it_ships() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Scale(4))
    qat = trained(model, "int8", steps=0)
    tq.calibrate(qat, [torch.rand(4, 3, 9, 9)])
    x = torch.rand(2, 3, 9, 9)
    site = next(iter(qat[0].binding.leaf.values()))
    rounded = site._rounded(qat[0].bias, qat[0].weight)
    unit = float(site.reads[0].scale) * site.weight.scale.reshape(-1)
    assert torch.equal(torch.round(rounded / unit), torch.round(qat[0].bias / unit))
    assert not torch.equal(rounded, qat[0].bias)
    assert qat.train()(x).isfinite().all()


def test_the_gradient_reaches_the_factor() -> None:
    for config in ("int8", "w8a8-per-tensor"):
        qat = tq.prepare(folded(Scale), torch.rand(4, 3, 9, 9), config).train()
        qat(torch.rand(4, 3, 9, 9)).square().mean().backward()
        assert float(qat[1].gamma.grad.abs().min()) > 0


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gamma = nn.Linear(9, 9), nn.Parameter(torch.rand(9))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y + y * self.gamma


def test_a_factor_that_does_not_fold_is_one_operation_for_each_number() -> None:
    """The layer's result is read elsewhere too, without the factor."""
    torch.manual_seed(0)
    model, x = Branch().eval(), torch.rand(4, 3, 9, 9)
    site = tq.plan(model, x).site("mul_0")
    assert (site.action, site.reason) == ("pointwise", "a float32 operation for each number, rounded alike everywhere")
    qat = tq.prepare(model, x)
    tq.calibrate(qat, [x])
    tq.assert_exact(qat.eval(), tq.convert(qat), [x], runtimes=("reference", "onnxruntime"))


def test_a_plan_with_a_map_is_stored_and_checked() -> None:
    model, x = folded(FrozenNorm), torch.rand(4, 3, 9, 9)
    plan = tq.plan(model, x)
    text = plan.to_json()
    assert tq.Plan.from_json(text) == plan
    assert torch.equal(tq.prepare(model, x, plan).train()(x), tq.prepare(model, x).train()(x))
    with pytest.raises(FileError, match="the site '0' contradicts itself"):
        tq.Plan.from_json(text.replace('"rsqrt"', '"system"'))
    with pytest.raises(PlanError, match="1 of its parameters and buffers are not there"):
        tq.prepare(model, x, tq.Plan.from_json(text.replace('"1.running_var"', '"1.variance"')))


class Huge(nn.Module):
    """Activations beyond what masks add: sums of integer layers are activations, however large."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


def test_large_activations_are_no_masks() -> None:
    model = Huge()
    with torch.no_grad():
        model.a.weight.fill_(1e5)
    assert tq.plan(model, torch.rand(2, 3, 4, 4)).site("add_0").action == "add"


class Reshaped(nn.Module):
    """A factor that a method of a tensor brings into shape in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.factor = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(x) * self.factor.reshape(1, -1, 1, 1)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
def test_a_constant_that_is_reshaped_in_the_forward_compiles() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    qat = tq.prepare(Reshaped(), x)
    tq.calibrate(qat, [x])
    expected = qat.eval()(x)
    assert torch.equal(torch.compile(qat, fullgraph=True, backend="eager")(x), expected)
    torch.compile(qat.train(), fullgraph=True, backend="eager")(x).sum().backward()
    assert qat.factor.grad is not None
