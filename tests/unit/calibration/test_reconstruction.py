"""Block reconstruction: blocks found and named, results closer than rounding layer by layer to nearest, nothing left behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.unit.calibration.test_adaround import SCHEMES, weight_codes
from truequant.calibration.blocks import blocks_of
from truequant.calibration.layers import layers
from truequant.calibration.reconstruction import BlockReconstruction
from truequant.errors import ArgumentError
from truequant.fake import outermost

QUICK = BlockReconstruction(iterations=40, learning_rate=0.1, batch_size=12)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.b, self.drop = nn.Conv2d(width, width, 3, padding=1), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(F.relu(self.norm(self.a(x))))
        return F.dropout(F.relu(self.b(y) + x), 0.3, self.training)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(Residual(8), Residual(8))
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            for m in self.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.running_mean.normal_(std=0.2)
                    m.running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def names(qat: nn.Module, *given: str) -> list[tuple[str, int]]:
    root = outermost(qat)
    return [(b.name, len(b.layers)) for b in blocks_of(root, layers(root, "a test"), given)]


def test_blocks_are_found_and_named() -> None:
    x = torch.randn(2, 2, 6, 6)
    qat = tq.prepare(Net(), x)
    assert names(qat) == [("stem.0", 1), ("body.0", 2), ("body.1", 2), ("head", 1)]
    assert names(qat, "body") == [("stem.0", 1), ("body", 4), ("head", 1)]
    assert names(qat, "body", "body.1") == [("stem.0", 1), ("body", 4), ("head", 1)]
    assert names(qat, "") == [("", 6)]
    for wrong in ("nowhere", "stem.1"):
        with pytest.raises(ArgumentError, match=f"BlockReconstruction: '{wrong}' is no block"):
            names(qat, wrong)


@pytest.mark.parametrize("kind", ["learned", "per tensor"])
def test_codes_survive_and_nothing_is_left_behind(kind: str) -> None:
    x = torch.randn(24, 2, 6, 6)
    qat = tq.prepare(Net(), x, tq.QConfig(weight=SCHEMES[kind])).train()
    before = weight_codes(qat)
    modes = [m.training for m in qat.modules()]
    tq.calibrate(qat, x.split(12), QUICK)
    assert modes == [m.training for m in qat.modules()]
    assert not any("forward" in m.__dict__ for m in qat.modules())
    assert outermost(qat).binding.clock.state == "training"
    assert all(p.grad is None for p in qat.parameters())
    codes = weight_codes(qat)
    assert any(not torch.equal(codes[name], before[name]) for name in codes)
    qat.eval()
    assert tq.verify(qat, tq.convert(qat), [x], runtimes=("reference", "onnxruntime")).codes_different == 0
    qat.train()
    for m in qat.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    qat(x)
    assert all(torch.equal(found, codes[name]) for name, found in weight_codes(qat).items())


@pytest.mark.parametrize("method", [BlockReconstruction((), 120, 0.05, 24, drop=d) for d in (0.0, 0.5)])
def test_results_are_closer_on_inputs_that_it_never_saw(method: BlockReconstruction) -> None:
    model, x, fresh = Net(), torch.randn(96, 2, 6, 6), torch.randn(96, 2, 6, 6)
    wanted = model(fresh).detach()

    def error(steps: object) -> float:
        qat = tq.calibrate(tq.prepare(model, x, "w3a3-all"), x.split(32), steps).eval()  # type: ignore[arg-type]
        return float((qat(fresh) - wanted).square().mean().detach())

    assert error(method) < 0.9 * error(None)  # 0.35 to 0.82 with three seeds, two with AVX2, one with baseline kernels


def test_no_iterations_are_nearest_and_a_seed_decides() -> None:
    x, model = torch.randn(24, 2, 6, 6), Net()
    nearest = weight_codes(tq.calibrate(tq.prepare(model, x, "w4a8-all"), [x]))
    none = weight_codes(tq.calibrate(tq.prepare(model, x, "w4a8-all"), [x], BlockReconstruction(iterations=0)))
    assert all(torch.equal(nearest[name], none[name]) for name in nearest)
    first, second = (weight_codes(tq.calibrate(tq.prepare(model, x, "w4a8-all"), [x], QUICK)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(x).relu()).relu())


def test_a_block_called_twice_is_refused_and_one_that_contains_it_is_not() -> None:
    x = torch.randn(16, 4)
    with pytest.raises(ArgumentError, match="'block' is called more than once in a forward"):
        tq.calibrate(tq.prepare(Twice(), x), [x], QUICK)
    qat = tq.calibrate(tq.prepare(Twice(), x, "w4a8-all"), [x], BlockReconstruction(("",), iterations=50))
    assert tq.verify(qat, tq.convert(qat), [x], runtimes=["reference"]).codes_different == 0


def test_an_encoder_layer_is_a_block() -> None:
    x = torch.randn(12, 5, 16)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True, norm_first=True).eval()
    model = nn.Sequential(encoder, nn.Linear(16, 4)).eval()
    qat = tq.prepare(model, x, "w4a8-all")
    with pytest.warns(UserWarning, match="BlockReconstruction leaves 3 as they are"):  # the projections of the attention
        tq.calibrate(qat, [x], QUICK)
    assert tq.verify(qat, tq.convert(qat), [x], runtimes=["reference"]).codes_different == 0


def test_drop_is_a_probability() -> None:
    with pytest.raises(ArgumentError, match="BlockReconstruction: drop out of range"):
        BlockReconstruction(drop=1.5)
