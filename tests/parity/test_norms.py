"""Norms by what they compute: a call of `F.batch_norm` folds into the layer before it, whatever class makes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.parity.trained import codes_are_equal, trained


class WithActivation(nn.BatchNorm2d):
    """Normalizes, drops and clips in its own forward, as libraries of image models do."""

    def __init__(self, channels: int, momentum: float | None = 0.1) -> None:
        super().__init__(channels, momentum=momentum)
        self.drop, self.act = nn.Identity(), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None
        if self.training:
            self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None and self.training else self.momentum or 0.0
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, share, self.eps)
        return self.act(self.drop(y))


class BehindSuper(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(super().forward(x))


class Empty(nn.BatchNorm2d):
    pass


class ByHand(nn.Module):
    """No BatchNorm of torch's at all; the arguments in torch's other order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels)), 1e-5
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        given = (self.weight, self.bias, self.running_mean, self.running_var)
        return F.relu6(torch.batch_norm(x, *given, self.training, 0.1, self.eps, False))


class SamePadding(nn.Conv2d):
    """A convolution that pads unevenly in its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardized(nn.Conv2d):
    """A convolution whose weight is computed in its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt(), self.bias)


def plain(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU6())


def net(norm: Callable[[int], nn.Module], conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [m for i, o in ((3, 8), (8, 6)) for m in (conv(i, o, 3, bias=o == 6), norm(o))]
    return nn.Sequential(*layers)


NORMS: tuple[Callable[[int], nn.Module], ...] = (WithActivation, BehindSuper, Empty, ByHand)


@pytest.mark.parametrize("config", ["int8", "w8a8-per-tensor"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_of_any_class_trains_as_batchnorm_and_converts_to_its_codes(
    norm: Callable[[int], nn.Module], config: str, tmp_path: Path
) -> None:
    made = (lambda c: nn.Sequential(Empty(c), nn.ReLU6())) if norm is Empty else norm
    qat, expected = trained(net(made), config), trained(net(plain), config)
    ours, theirs = dict(qat.named_parameters()), dict(expected.named_parameters())
    for (name, mine), yours in zip(ours.items(), theirs.values(), strict=True):
        assert torch.equal(mine, yours), name
    statistics = [[b for n, b in m.named_buffers() if "running" in n or "tracked" in n] for m in (qat, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*statistics, strict=True))
    x = torch.rand(2, 3, 9, 9)
    int8 = codes_are_equal(qat, x, tmp_path)
    assert int8.ops() == {"Quantize": 1, "Conv": 2, "Dequantize": 1}
    assert torch.equal(int8(x), tq.convert(expected.eval())(x))


@pytest.mark.parametrize("config", ["int8", "w8a8-per-tensor"])
@pytest.mark.parametrize("conv", [SamePadding, Standardized])
def test_a_norm_folds_into_a_convolution_with_a_forward_of_its_own(conv: type[nn.Conv2d], config: str, tmp_path: Path) -> None:
    qat = trained(net(plain, conv), config)
    assert set(codes_are_equal(copy.deepcopy(qat), torch.rand(2, 3, 9, 9), tmp_path).ops()) <= {
        "Quantize", "Conv", "Pad", "Dequantize",
    }  # fmt: skip


def test_the_bias_of_such_a_convolution_is_rounded_as_that_of_a_module() -> None:
    class Same(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, self.bias)

    ours, theirs = trained(net(plain, Same), "int8"), trained(net(plain), "int8")
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, yours)


class BehindTranspose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.norm(self.fc(x.flatten(2).transpose(1, 2)).permute(0, 2, 1)).transpose(1, 2))
        return y


@pytest.mark.parametrize("config", ["int8", "w8a8-per-tensor"])
def test_a_norm_of_the_features_of_a_linear_layer_folds_behind_a_transpose(config: str, tmp_path: Path) -> None:
    qat = trained(BehindTranspose(), config)
    assert qat.binding.plan.site("norm").fused_into == "fc"
    ops = codes_are_equal(qat, torch.rand(2, 3, 9, 9), tmp_path).ops()
    assert "Island" not in ops
    assert "Conv" not in ops


def test_one_that_stands_alone_is_an_integer_layer_of_one_weight_a_channel(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), WithActivation(8), nn.AvgPool2d(2), BehindSuper(8))
    qat = trained(model, "int8")
    assert [s.action for s in qat.binding.plan.sites if s.op == "batch_norm"] == ["affine", "affine"]
    assert "Island" not in codes_are_equal(qat, torch.rand(2, 3, 9, 9), tmp_path).ops()


class Frozen(nn.BatchNorm2d):
    """Its running statistics also in training."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


@pytest.mark.parametrize("config", ["int8", "w8a8-per-tensor"])
def test_one_that_never_takes_the_statistics_of_a_batch_keeps_its_own(config: str, tmp_path: Path) -> None:
    qat = trained(net(Frozen), config)
    assert torch.equal(qat[1].running_mean, torch.zeros(8))
    assert codes_are_equal(qat, torch.rand(2, 3, 9, 9), tmp_path).ops() == {"Quantize": 1, "Conv": 2, "Dequantize": 1}


class Twice(nn.Module):
    """What is normalized is read by another op too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), Empty(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class OfTheBatch(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True)


class Scaled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight * 2, self.bias, self.training)


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (Twice(), "norm", "integer factor and bias a channel"),
        (net(OfTheBatch), "1.batch_norm_0", "it normalizes with the statistics of the batch in evaluation too"),
        (net(Scaled), "1.batch_norm_0", "its weight is not the tensor that the module holds under this name"),
        (nn.Sequential(nn.BatchNorm2d(3)), "0", "stands alone: no layer before it to fold into"),
    ],
)
def test_the_plan_says_why_a_norm_does_not_fold(model: nn.Module, name: str, reason: str) -> None:
    assert tq.plan(model, torch.rand(4, 3, 9, 9)).site(name).reason == reason


class WrongAxis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(9, 9), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.fc(x))
        return y


def test_a_norm_of_another_axis_than_the_channels_does_not_fold(tmp_path: Path) -> None:
    qat = trained(WrongAxis(), "int8")
    assert qat.binding.plan.site("norm").action == "affine"
    codes_are_equal(qat, torch.rand(2, 3, 9, 9), tmp_path)


def test_a_compiled_evaluation_normalizes_once() -> None:
    x = torch.rand(2, 3, 9, 9)
    qat = trained(nn.Sequential(nn.Conv2d(3, 6, 3), WithActivation(6)), "int8").eval()
    with torch.no_grad():
        expected = qat(x)
        assert torch.equal(torch.compile(qat, backend="eager")(x), expected)
