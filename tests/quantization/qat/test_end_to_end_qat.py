"""Area 10: on real MNIST, QAT beats PTQ where PTQ hurts, keeps float accuracy at Int8, and ships what it measured.

PTQ and QAT start from the same float model. PTQ quantizes that model after the same extra epochs of float training that QAT
gets, with the best of min-max, percentile and MSE ranges as chosen on held-out training images, so that only
quantization-awareness differs. Last epoch, not best.

Where channels were spread apart, PTQ is a lottery (20 to 58 % with three seeds on two kinds of arithmetic) and QAT is not:
85.2 to 86.1 %. It needs its 374 steps for that; with a third of them it lies between 58 and 62.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.demo import MODELS, Mnist, load_mnist
from truequant.schemes import MSE, MinMax, Percentile

TRAINED, EPOCHS, EXTRA, BATCH = 24_000, 2, 2, 128
OBSERVERS = {"min-max": MinMax(), "percentile": Percentile(), "MSE": MSE()}


class Separable(nn.Module):
    """Depthwise-separable blocks whose depthwise channels differ in range by nearly three powers of ten.

    Trained MobileNets look so. The gains sit in front of ReLUs and the next layer takes them back, so that the float function
    is an ordinary one.
    """

    def __init__(self) -> None:
        super().__init__()

        def block(width: int, out: int, stride: int) -> list[nn.Module]:
            depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
            pointwise = nn.Conv2d(width, out, 1, bias=False)
            return [depthwise, nn.BatchNorm2d(width), nn.ReLU(), pointwise, nn.BatchNorm2d(out), nn.ReLU()]

        stem = [nn.Conv2d(1, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
        self.features = nn.Sequential(*stem, *block(24, 48, 2), *block(48, 64, 1))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))

    @torch.no_grad()
    def spread(self) -> None:
        """Scale the channels behind each depthwise layer apart and the next layer back: positive gains commute with ReLU."""
        generator = torch.Generator().manual_seed(0)
        for depthwise, norm, pointwise in zip(self.features, self.features[1:], self.features[3:], strict=False):
            if not isinstance(depthwise, nn.Conv2d) or depthwise.groups == 1:
                continue
            gain = 10 ** (2.8 * (torch.rand(norm.num_features, generator=generator) - 0.5))
            norm.weight.mul_(gain)
            norm.bias.mul_(gain)
            pointwise.weight.div_(gain.reshape(1, -1, 1, 1))


def train(model: nn.Module, data: Mnist, epochs: int, rate: float, seed: int) -> nn.Module:
    """SGD with momentum and a cosine, the same for float and QAT."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    steps = epochs * (TRAINED // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(TRAINED, generator=generator)[: TRAINED // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_images[rows]), data.train_labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def answers(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in images.split(500)])


def top1(found: Tensor, labels: Tensor) -> float:
    return 100 * float((found == labels).double().mean())


def mcnemar(better: Tensor, worse: Tensor, labels: Tensor) -> float:
    """One-sided exact p of the discordant pairs: the chance of at least so many wins if both were equally good."""
    wins = int(((better == labels) & (worse != labels)).sum())
    n = wins + int(((better != labels) & (worse == labels)).sum())
    return sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n if n else 1.0


@dataclass(frozen=True)
class Floats:
    """A float model, and the same model after the extra epochs."""

    common: nn.Module
    continued: nn.Module


@pytest.fixture(scope="module")
def data() -> Mnist:
    return load_mnist()


def floats(model: nn.Module, data: Mnist) -> Floats:
    common = train(model, data, EPOCHS, 0.05, 0)
    if isinstance(common, Separable):
        common.spread()
    return Floats(common, train(copy.deepcopy(common), data, EXTRA, 0.01, 1))


@pytest.fixture(scope="module")
def lenet(data: Mnist) -> Floats:
    torch.manual_seed(0)
    return floats(MODELS["lenet"](), data)


@pytest.fixture(scope="module")
def mlp(data: Mnist) -> Floats:
    torch.manual_seed(0)
    return floats(MODELS["mlp"](), data)


@pytest.fixture(scope="module")
def separable(data: Mnist) -> Floats:
    torch.manual_seed(0)
    return floats(Separable(), data)


@dataclass(frozen=True)
class Outcome:
    """Predictions on the 10,000 test images."""

    floating: Tensor
    ptq: Tensor
    min_max: Tensor
    qat: Tensor
    model: nn.Module


def quantized(start: Floats, preset: str, data: Mnist) -> Outcome:
    config = tq.QConfig.preset(preset)
    calibration = data.train_images[:2000].split(250)
    candidates = {}
    for name, observer in OBSERVERS.items():
        ptq = tq.prepare(start.continued, data.train_images[:8], config.with_observer(observer))
        candidates[name] = tq.calibrate(ptq, calibration).eval()
    scores = {n: top1(answers(m, data.held_out_images), data.held_out_labels) for n, m in candidates.items()}
    best = candidates[max(scores, key=lambda n: scores[n])]
    qat = tq.prepare(start.common, data.train_images[:8], config)
    tq.calibrate(qat, calibration)
    train(qat, data, EXTRA, 0.01, 1)
    images = data.test_images
    found = [answers(m, images) for m in (start.continued, best, candidates["min-max"], qat)]
    return Outcome(found[0], found[1], found[2], found[3], qat)


def record(outcome: Outcome, data: Mnist, note: Callable[[str, object], None]) -> None:
    for name in ("floating", "ptq", "min_max", "qat"):
        note(name, top1(getattr(outcome, name), data.test_labels))


@pytest.mark.parametrize(
    ("model", "preset"), [("lenet", "w2a2"), ("lenet", "w2a2-all"), ("mlp", "w2a2-all"), ("separable", "w8a8-per-tensor")]
)
def test_qat_beats_ptq_where_ptq_hurts(
    model: str, preset: str, data: Mnist, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    outcome = quantized(request.getfixturevalue(model), preset, data)
    record(outcome, data, record_property)
    figures = {n: top1(getattr(outcome, n), data.test_labels) for n in ("floating", "ptq", "min_max", "qat")}
    assert figures["qat"] > figures["ptq"], figures
    assert mcnemar(outcome.qat, outcome.ptq, data.test_labels) < 0.01, figures


def test_int8_keeps_float_accuracy_and_ships_its_predictions(
    lenet: Floats, data: Mnist, record_property: Callable[[str, object], None]
) -> None:
    outcome = quantized(lenet, "w8a8", data)
    record(outcome, data, record_property)
    floating, qat = top1(outcome.floating, data.test_labels), top1(outcome.qat, data.test_labels)
    assert qat >= floating - 0.3  # equally good models differ by 10 of the 10,000 images easily; seen: 98.68 and 98.68
    assert mcnemar(outcome.ptq, outcome.qat, data.test_labels) > 0.01  # not behind PTQ beyond noise
    int8 = tq.convert(outcome.model)
    assert torch.equal(answers(int8, data.test_images), outcome.qat)
    assert torch.equal(answers(tq.compile(int8, "onnxruntime"), data.test_images), outcome.qat)
