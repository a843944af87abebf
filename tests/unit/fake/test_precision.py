"""Models in other precisions than float32: evaluated in float32, trained in their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq


class Tokens(nn.Module):
    """Tables, a norm in float, layers and a recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.rnn = nn.Embedding(20, 8), nn.LayerNorm(8), nn.GRU(8, 8, batch_first=True)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(F.gelu(self.layer(self.norm(self.table(ids)))))[0])
        return y


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (convolutions, torch.rand(2, 3, 8, 8)),
    "tokens": (Tokens, torch.randint(0, 20, (2, 5))),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_codes_everywhere(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make, example = MODELS[name]
    torch.manual_seed(0)
    x = example.to(dtype) if example.is_floating_point() else example
    qat = tq.prepare(make().to(dtype), x).train()
    qat(x).float().sum().backward()
    assert {p.grad.dtype for p in qat.parameters() if p.grad is not None} == {dtype}
    tq.calibrate(qat, [x], progress=False)
    int8 = tq.convert(qat.eval())
    assert qat(x).dtype == torch.float32
    assert {p.dtype for p in qat.parameters()} == {dtype}
    report = tq.verify(qat, int8, [x], runtimes=("reference", "onnxruntime"))
    assert report.codes_compared > 0
    assert [r.codes_different for r in report.runtimes.values()] == [0, 0]
    int8.save(tmp_path / "m.tq")
    assert torch.equal(tq.load(tmp_path / "m.tq")(x), qat(x))


@pytest.mark.parametrize("preset", ["w4a16", "w8a8-dynamic"])
def test_layers_that_read_floats(preset: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 32).bfloat16()
    qat = tq.prepare(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).bfloat16(), x, preset)
    int8 = tq.convert(tq.calibrate(qat, [x], progress=False).eval())
    assert torch.equal(int8(x), qat(x))
    assert torch.equal(int8(x.float()), int8(x))


def test_gradients_pass_the_evaluation_of_a_half_model() -> None:
    x = torch.randn(4, 8).bfloat16()
    qat = tq.calibrate(tq.prepare(nn.Linear(8, 4).bfloat16(), x), [x], progress=False).eval()
    qat(x).sum().backward()
    assert qat.weight.grad.dtype == torch.bfloat16  # type: ignore[union-attr]
