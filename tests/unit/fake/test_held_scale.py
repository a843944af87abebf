"""A weight's scale that is held: codes that were chosen for it stay, in evaluation, training, checkpoints and conversion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.fake import WeightQuantizer, forget


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def held_at(qat: nn.Module, factor: float) -> WeightQuantizer:
    """Hold the convolution's scale at `factor` times its own and write codes that lie well inside."""
    conv = qat.get_submodule("conv")
    quantizer = conv.get_submodule("quantizers.weight")
    assert isinstance(quantizer, WeightQuantizer)
    assert isinstance(conv.weight, Tensor)
    with torch.no_grad():
        scale = quantizer.scale_of(conv.weight).clone() * factor
        conv.weight.copy_(torch.randint(-3, 4, conv.weight.shape) * scale.reshape(-1, 1, 1, 1))
    quantizer.hold(scale)
    return quantizer


@pytest.mark.parametrize("preset", ["w8a8", "w4a4-all"])
def test_codes_survive_evaluation_training_freezing_and_checkpoints(preset: str, tmp_path: Path) -> None:
    x = torch.randn(8, 2, 6, 6)
    qat = tq.prepare(Net(), x, preset)
    quantizer = held_at(qat, 3.0)
    weight = qat.conv.weight
    wanted = torch.round(weight.detach() / quantizer.scale.reshape(-1, 1, 1, 1))
    assert wanted.abs().max() == 3
    tq.calibrate(qat, [x])
    qat.train()
    qat(x).sum().backward()
    assert torch.equal(quantizer.codes(weight), wanted)
    tq.unfreeze(tq.freeze(qat))
    qat.eval()
    assert torch.equal(quantizer.codes(weight), wanted)
    int8 = tq.convert(qat)
    assert tq.verify(qat, int8, [x]).codes_different == 0
    tq.save_checkpoint(tmp_path / "held.ckpt", model=qat)
    fresh = Net()
    tq.load_checkpoint(tmp_path / "held.ckpt", model=fresh)
    again = fresh.conv.get_submodule("quantizers.weight")
    assert isinstance(again, WeightQuantizer)
    assert torch.equal(again.codes(fresh.conv.weight), wanted)
    assert torch.equal(fresh.eval()(x), qat(x))


def test_a_held_scale_is_let_go() -> None:
    x = torch.randn(8, 2, 6, 6)
    qat = tq.prepare(Net(), x, "w8a8")
    quantizer = held_at(qat, 3.0)
    assert quantizer.codes(qat.conv.weight).abs().max() == 3
    forget(qat)
    assert not quantizer.held
    assert quantizer.codes(qat.conv.weight).abs().max() == 127
