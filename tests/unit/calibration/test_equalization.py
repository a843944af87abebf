"""Cross-layer equalization: the float function stays, ranges become equal, what does not commute is left alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.calibration.equalization import equalizing_gains
from truequant.calibration.layers import layers
from truequant.calibration.method import Work
from truequant.calibration.pairs import Pair, pairs
from truequant.calibration.progress import Bars
from truequant.fake import outermost
from truequant.planning import Takes, arguments_of

PER_TENSOR = "w8a8-per-tensor"


def conv(i: int, o: int, k: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def trained(model: nn.Module) -> nn.Module:
    """Weights of very different ranges, and statistics that are not those of a fresh BatchNorm."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                m.weight.mul_(10 ** torch.empty(len(m.weight), *[1] * (m.weight.dim() - 1)).uniform_(-1.5, 1.5))
            if isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(torch.randn_like(m.weight))
                m.bias.normal_()
                m.running_mean.normal_()
                m.running_var.uniform_(0.2, 2.0)
    return model.eval()


def found(qat: nn.Module, x: Tensor) -> tuple[list[Pair], list[str]]:
    model = outermost(qat)
    return pairs(Work(model, (arguments_of(x, Takes(), None),), Bars(False)), layers(model, "a test"))


def names(chain: list[Pair]) -> list[tuple[str, str]]:
    return [(p.first.name, p.second.name) for p in chain]


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6), nn.ReLU(), conv(6, 4)), 2),
    "batch norm": (
        lambda: nn.Sequential(
            conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4)
        ), 2
    ),
    "depthwise": (lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, groups=8), nn.ReLU(), conv(8, 4, 1)), 2),
    "grouped": (lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6, groups=2), nn.ReLU(), conv(6, 4)), 2),
    "flattened": (lambda: nn.Sequential(conv(3, 8), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)), 1),
    "averaged": (lambda: nn.Sequential(conv(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), 1),
    "leaky": (lambda: nn.Sequential(conv(3, 8), nn.LeakyReLU(0.1), conv(8, 5)), 1),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 5)), 1),
}  # fmt: skip


@pytest.mark.parametrize("preset", ["w8a8", PER_TENSOR, "w8a8-pow2", "w4a4-all"])
@pytest.mark.parametrize("kind", MODELS)
def test_float_function_stays_and_codes_agree(kind: str, preset: str) -> None:
    make, count = MODELS[kind]
    model, x = trained(make()), torch.randn(8, 3, 8, 8)
    wanted = model(x).detach()
    qat = tq.prepare(model, x, preset)
    assert len(found(qat, x)[0]) == count
    before = {n: p.detach().clone() for n, p in qat.named_parameters()}
    tq.calibrate(qat, [x], tq.methods.CrossLayerEqualization(absorb_bias=False))
    assert any(not torch.equal(before[n], p) for n, p in qat.named_parameters())
    with tq.quantizers_off(qat):
        assert torch.allclose(qat.eval()(x), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    int8 = tq.convert(qat)
    assert tq.verify(qat, int8, [x], runtimes=["reference"]).codes_different == 0


def test_the_ranges_of_a_depthwise_triple_become_their_geometric_mean() -> None:
    model, x = trained(MODELS["depthwise"][0]()), torch.randn(4, 3, 8, 8)
    a, b, c = (model.get_submodule(n).weight.detach().double() for n in ("0", "2", "4"))
    ranges = [a.flatten(1).abs().amax(1), b.flatten(1).abs().amax(1), c.abs().amax((0, 2, 3))]
    mean = (ranges[0] * ranges[1] * ranges[2]) ** (1 / 3)
    qat = tq.prepare(model, x, PER_TENSOR)
    first, second = equalizing_gains(found(qat, x)[0])
    assert torch.allclose(first, ranges[0] / mean, rtol=1e-3)  # s12 = r1 / t
    assert torch.allclose(second, mean / ranges[2], rtol=1e-3)  # s23 = t / r3
    tq.calibrate(qat, [x], tq.methods.CrossLayerEqualization(absorb_bias=False))
    for name, axes in (("0", (1, 2, 3)), ("2", (1, 2, 3)), ("4", (0, 2, 3))):
        assert torch.allclose(qat.get_submodule(name).weight.abs().amax(axes).double(), mean, rtol=1e-3)


def test_a_pair_of_folded_weights_has_equal_ranges() -> None:
    model, x = trained(MODELS["batch norm"][0]()), torch.randn(4, 3, 8, 8)
    qat = tq.prepare(model, x, PER_TENSOR)
    tq.calibrate(qat, [x], tq.methods.CrossLayerEqualization())
    for pair in found(qat, x)[0]:
        r1 = pair.first.folded().abs().flatten(1).amax(1)
        assert torch.allclose(r1, pair.second.folded().abs().amax((0, 2, 3)), rtol=1e-3)
        assert torch.equal(pair.first.quantizer.scale, pair.first.quantizer.scale_of(pair.first.weight(), pair.first.factor()))


def test_dead_channels_and_gamma_of_zero_are_left_alone() -> None:
    model, x = trained(MODELS["batch norm"][0]()), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        model[1].weight[2] = 0.0
        model[3].weight[:, 4] = 0.0
        model[0].weight[5] = 0.0
    wanted = model(x).detach()
    qat = tq.prepare(model, x, PER_TENSOR)
    first, _ = equalizing_gains(found(qat, x)[0])
    assert first[[2, 4, 5]].tolist() == [1.0, 1.0, 1.0]
    tq.calibrate(qat, [x], tq.methods.CrossLayerEqualization())
    assert all(torch.isfinite(p).all() for p in qat.parameters())
    with tq.quantizers_off(qat):
        assert torch.allclose(qat.eval()(x), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


class Branches(nn.Module):
    """Nothing here may exchange a gain: two readers, a residual add, a GELU, an output that is read again, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (conv(4, 4) for _ in range(5))
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.a(x))
        y = F.relu(self.b(y)) + y  # two readers of y, and an add behind b
        z = self.gelu(self.c(y))
        out = self.d(z)
        return self.e(self.e(out)), out


def test_what_does_not_commute_is_no_pair() -> None:
    x = torch.randn(2, 4, 8, 8)
    assert names(found(tq.prepare(Branches(), x, PER_TENSOR), x)[0]) == []


class Reversed(nn.Module):
    """The plan sees only movement between the layers, but it reorders channels: the trial must notice."""

    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.a, self.b, self.flip = conv(3, 4), conv(4, 2), flip

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        return self.b(y.flip(1) if self.flip else y.flip(2))


@pytest.mark.parametrize(("flip", "count"), [(True, 0), (False, 1)])
def test_reordered_channels_are_no_pair(flip: bool, count: int) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert len(found(tq.prepare(Reversed(flip), x, PER_TENSOR), x)[0]) == count


def test_relu6_stands_in_the_way_and_is_named() -> None:
    model, x = nn.Sequential(conv(3, 8), nn.ReLU6(), conv(8, 4), nn.ReLU(), conv(4, 2)), torch.randn(4, 3, 8, 8)
    qat = tq.prepare(model, x, PER_TENSOR)
    with pytest.warns(UserWarning, match=r"CrossLayerEqualization leaves 1 as it is: '0': an upper clamp.*replace_relu6"):
        tq.calibrate(qat, [x], tq.methods.CrossLayerEqualization())
    replaced = copy.deepcopy(model)
    assert tq.methods.replace_relu6(replaced) == ("1",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tq.calibrate(tq.prepare(replaced, x, PER_TENSOR), [x], tq.methods.CrossLayerEqualization())
    with pytest.raises(tq.TruequantError, match="no nn.ReLU6"):
        tq.methods.replace_relu6(replaced)


@pytest.mark.parametrize("norm", [True, False])
def test_bias_absorption_moves_what_is_always_above_zero(norm: bool) -> None:
    tail = [nn.ReLU(), nn.Conv2d(6, 4, 1)]
    model = nn.Sequential(nn.Conv2d(3, 6, 1), *([nn.BatchNorm2d(6)] if norm else []), *tail).eval()
    shifted = model[1].bias if norm else model[0].bias
    with torch.no_grad():
        shifted.copy_(torch.tensor([9.0, -9.0, 0.0, 5.0, 0.1, 20.0]))
    x = torch.randn(16, 3, 8, 8)
    wanted = model(x).detach()
    qat = tq.prepare(model, x, PER_TENSOR)
    tq.calibrate(qat, [x], tq.methods.CrossLayerEqualization(absorb_bias=False))
    ranges = outermost(qat).get_submodule("2" if norm else "1").get_submodule("quantizers.output").scale.clone()
    moved = tq.prepare(model, x, PER_TENSOR)
    tq.calibrate(moved, [x], tq.methods.CrossLayerEqualization())
    now = moved[1].bias if norm else moved[0].bias
    plain = qat[1].bias if norm else qat[0].bias
    assert (now <= plain).all()
    assert (now < 0.7 * plain)[[0, 3, 5]].all()  # far above zero
    assert torch.equal(now[[1, 2, 4]], plain[[1, 2, 4]])
    assert moved.get_submodule("2" if norm else "1").get_submodule("quantizers.output").scale < ranges
    with tq.quantizers_off(moved):
        assert torch.allclose(moved.eval()(x), wanted, atol=1e-4 * float(wanted.abs().max()))


def test_nothing_is_absorbed_in_front_of_padding() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), conv(6, 4)).eval()
    with torch.no_grad():
        model[0].bias.fill_(9.0)
    x = torch.randn(4, 3, 8, 8)
    first, second = (tq.prepare(model, x, PER_TENSOR) for _ in range(2))
    tq.calibrate(first, [x], tq.methods.CrossLayerEqualization())
    tq.calibrate(second, [x], tq.methods.CrossLayerEqualization(absorb_bias=False))
    assert torch.equal(first[0].bias, second[0].bias)


def mean_log(size: Tensor) -> float:
    """Of the ranges of output channels."""
    return float(size.flatten(1).amax(1).log().mean())


@pytest.mark.parametrize("kind", ["plain", "depthwise", "batch norm"])
def test_layers_that_keep_their_size_lose_nothing(kind: str) -> None:
    """Channels are as equal as without, gains have the geometric mean 1, and the codes of all weights are the same."""
    torch.manual_seed(5)
    model, x = trained(MODELS[kind][0]()), torch.randn(8, 3, 8, 8)
    codes, sizes = [], []
    for keep in (False, True):
        qat = tq.prepare(model, x, PER_TENSOR)
        tq.calibrate(qat, [x], tq.methods.CrossLayerEqualization(absorb_bias=False, keep_sizes=keep))
        ours = layers(outermost(qat), "a test")
        codes.append([layer.codes() for layer in ours])
        sizes.append([layer.folded().abs() for layer in ours])
        assert torch.allclose(qat.eval()(x), model(x), atol=0.1 * float(model(x).detach().abs().max()))
    same = [float((a == b).double().mean()) for a, b in zip(*codes, strict=True)]
    assert min(same) > 0.995  # but for what rounding of the gains moves across a boundary
    before = [layer.folded().abs() for layer in layers(outermost(tq.prepare(model, x, PER_TENSOR)), "a test")]
    kept, plain = (
        [abs(mean_log(after) - mean_log(old)) for old, after in zip(before, s, strict=True)] for s in (sizes[1], sizes[0])
    )
    assert kept[0] < 1e-5 < plain[0]  # the first layer is only divided: its mean logarithm stays
