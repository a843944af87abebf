"""What is validated is what ships: evaluation, integer program and onnxruntime agree in every code."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq

PRESETS = ("int8", "w8a8", "w8a8-pow2", "w8a8-per-tensor")


def trained(model: nn.Module, x: Tensor, preset: str | tq.QConfig, steps: int = 3) -> nn.Module:
    """`model`, prepared and trained a few steps on noise."""
    qat = tq.prepare(model, x, preset)
    optimizer = torch.optim.SGD(qat.parameters(), 0.01, momentum=0.9)
    for step in range(steps):
        torch.manual_seed(100 + step)
        noise = torch.randn_like(x)
        loss = sum(o.float().square().mean() for o in as_list(qat(noise)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return qat.eval()


def as_list(outputs: object) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]


def assert_promise(qat: nn.Module, batches: list[Tensor]) -> tq.Int8Model:
    """Every code of every edge, and every bit of the outputs."""
    int8 = tq.convert(qat)
    report = tq.verify(qat, int8, batches, runtimes=("reference", "onnxruntime"))
    assert report.codes_different == 0, str(report)
    assert report.argmax_changed == 0
    assert report.codes_compared > 0
    assert set(tq.codes(qat, batches[0])) == set(int8.program.edges)
    for x in batches:
        with torch.no_grad():
            assert torch.equal(qat(x), int8(x))
    return int8


class Residual(nn.Module):
    """Convolutions with BatchNorm, an in-place add, ReLU used twice, concat, pooling, a table."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.side = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.BatchNorm2d(channels), nn.ReLU6()
        )
        self.head = nn.Linear(3 * channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.conv(x)
        y += x
        y = self.relu(y)
        joined = torch.cat([y, self.side(y), F.hardswish(x)], 1)
        return self.head(F.max_pool2d(joined, 2).mean((2, 3)))


@pytest.mark.parametrize("preset", PRESETS)
def test_residual_network(preset: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 12, 12)
    qat = trained(Residual(), x, preset)
    assert_promise(qat, [x, x[:1], torch.zeros_like(x), 100 * x])


def block(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6())


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8, 13, 21, 29])
def test_error_does_not_grow_with_depth(depth: int) -> None:
    torch.manual_seed(depth)
    x = torch.randn(4, 8, 8, 8)
    qat = trained(nn.Sequential(*(block(8) for _ in range(depth))), x, "w8a8")
    assert_promise(qat, [x, 3 * x])


def set_gamma(value: float) -> Callable[[Residual], None]:
    def change(model: Residual) -> None:
        with torch.no_grad():
            model.norm.weight[0] = value

    return change


def negative_statistics(model: Residual) -> None:
    with torch.no_grad():
        model.norm.weight.copy_(-model.norm.weight.abs() - 0.1)
        model.norm.bias.uniform_(-3, 3)


def dead_channel(model: Residual) -> None:
    with torch.no_grad():
        model.stem.weight[1] = 0
        model.conv.weight[2] = 0


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "change",
    [set_gamma(0.0), set_gamma(-1.5), set_gamma(1e-30), set_gamma(-1e-12), negative_statistics, dead_channel],
    ids=["gamma 0", "gamma negative", "gamma tiny", "gamma tiny and negative", "all negative", "dead channel"],
)
def test_batch_norm_folds_exactly(change: Callable[[Residual], None], preset: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 3, 8, 8)
    model = Residual()
    change(model)
    qat = trained(model, x, preset)
    change(qat)  # type: ignore[arg-type]
    assert all(bool(torch.isfinite(p).all()) for p in qat.parameters())
    assert_promise(qat, [x, x[:1]])


def test_accumulators_beyond_float32() -> None:
    """A static bound above 2^24 leaves float32; sums stay exact."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4096, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight.fill_(0.01).add_(0.001 * torch.randn(16, 4096))
        model[0].bias.uniform_(-40, 40)
    x = 5 + torch.rand(3, 4096)
    qat = tq.prepare(model, x)
    tq.calibrate(qat, [x])
    int8 = assert_promise(qat.eval(), [x, x[:1], 5 * x])
    first = next(n for n in int8.program.nodes if type(n).__name__ == "Linear")
    assert int(first.weight.abs().to(torch.int64).sum(1).max()) * 255 > 2**24  # type: ignore[union-attr]


def test_average_pooling_with_equal_scales() -> None:
    """Ties are the rule where input and output share a scale: windows of 4 and whole axes."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.randint(0, 256, (64, 4, 8, 8)).float()
    qat = tq.prepare(model, x, "w8a8-pow2")
    tq.calibrate(qat, [x])
    for _, quantizer in tq.quantizers(qat):
        if isinstance(quantizer, tq.FakeQuantize):
            quantizer.scale.fill_(1.0)
            quantizer.zero_point.fill_(0.0)
    assert_promise(qat.eval(), [x])


def test_float_weights_play_no_part_after_conversion() -> None:
    torch.manual_seed(4)
    x = torch.randn(4, 3, 8, 8)
    qat = trained(Residual(), x, "w8a8")
    int8 = tq.convert(qat)
    before = int8(x)
    with torch.no_grad():
        for parameter in qat.parameters():
            parameter.zero_()
    assert torch.equal(int8(x), before)


def test_one_flipped_weight_changes_the_output() -> None:
    torch.manual_seed(5)
    x = torch.randn(4, 3, 8, 8)
    int8 = tq.convert(trained(Residual(), x, "w8a8"))
    changed = copy.deepcopy(int8)
    linear = next(n for n in changed.program.nodes if type(n).__name__ == "Linear")
    linear.weight[0, 0] += 64 if linear.weight[0, 0] < 0 else -64  # type: ignore[union-attr]
    assert not torch.equal(changed(x), int8(x))


def test_convert_leaves_its_argument_alone() -> None:
    torch.manual_seed(6)
    x = torch.randn(4, 3, 8, 8)
    qat = trained(Residual(), x, "w8a8").train()
    before = {k: v.clone() for k, v in qat.state_dict().items()}
    tq.convert(qat)
    assert qat.training
    assert all(torch.equal(v, before[k]) for k, v in qat.state_dict().items())


class Clipped(nn.Module):
    """Clamps as function calls, and a convolution whose "same" padding is uneven."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, (2, 4), padding="same")
        self.second = nn.Conv2d(8, 8, 3)
        self.third = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.first(x))
        x = torch.clamp(self.second(x), -0.5, 0.75)
        x = F.hardtanh(self.third(x), -0.25, 0.5)
        return self.head(x.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("preset", ["w8a8", "w8a8-pow2"])
def test_clamps_as_functions_and_uneven_padding(preset: str) -> None:
    """Inputs large enough that every clamp cuts."""
    torch.manual_seed(7)
    x = 12 * torch.randn(4, 3, 9, 9)
    qat = tq.prepare(Clipped(), x, preset)
    tq.calibrate(qat, [x])
    int8 = assert_promise(qat.eval(), [x, 2 * x])
    first = next(n for n in int8.program.nodes if n.output == "first")
    assert first.padding == ((0, 1), (1, 2))  # type: ignore[union-attr]
    edge = int8.program.edges["first"]
    assert first.high == min(255, round(6 / edge.scale) + edge.zero_point)  # type: ignore[union-attr]
