"""Forwards that overwrite their tensors: the prepared model computes what the float model does, and ships it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.errors import PlanError


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)


class Scaled(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        y.mul_(0.5)
        return y


class Chained(Two):  # two ops in a row, read under the first name
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.add_(1.0).clamp_(min=0)
        return self.b(y)


class Activated(Two):  # a skip connection reads what the activation overwrote
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = self.act(y)
        return self.b(z) + y


class Masked(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.masked_fill_(y < 0, 0.1)
        return self.b(y)


class Cut(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y[y < 0] = 0
        y[:, 0] = 0.3
        y[..., 2:4, 1] = y.mean()
        y[:, ::2] = 1
        return self.b(y)


class Assembled(Two):  # a fresh tensor, filled part by part
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = torch.zeros(y.shape[0], 6, y.shape[2], y.shape[3])
        z[:, :3] = y[:, 3:]
        z[:, 3:] = y[:, :3] * 2
        return self.b(z)


class Input(Two):
    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean()
        y = self.a(x)
        y.relu_()
        return self.b(y) + y


class Apart(Two):  # a part is overwritten beside the one that is read
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        left, right = y[:, :3], y[:, 3:]
        return self.b(torch.cat([left.relu_(), right], 1))


@pytest.mark.parametrize("kind", [Scaled, Chained, Activated, Masked, Cut, Assembled, Input, Apart])
def test_overwriting_is_computed_trained_and_deployed(kind: type[Two]) -> None:
    torch.manual_seed(0)
    model, batches = kind().eval(), [torch.randn(n, 3, 8, 8) for n in (2, 5)]
    qat = tq.prepare(model, batches[0].clone())
    tq.calibrate(qat, [b.clone() for b in batches], method=tq.ranges.MinMax())
    reference = model(batches[1].clone())
    with torch.no_grad():
        error = (qat.eval()(batches[1].clone()) - reference).pow(2).mean() / reference.var()
    assert error < 1e-3  # another function would be off by its own size
    qat.train()
    qat(batches[0].clone()).pow(2).mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in qat.parameters())
    int8 = tq.convert(qat.eval())
    report = tq.verify(qat, int8, [b.clone() for b in batches], runtimes=("reference", "onnxruntime"))
    assert report.codes_different == 0


class Hidden(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.flatten(1).sub_(0.25)
        return self.b(y)


class Before(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        part = y[:, :3]
        y.add_(1.0)
        return self.b(y)[:, :3] + part


@pytest.mark.parametrize("kind", [Hidden, Before])
def test_writing_through_a_view_is_refused_rather_than_lost(kind: type[Two]) -> None:
    with pytest.raises(PlanError, match=r"written through a view(.|\n)*test_overwriting.py:\d+"):
        tq.prepare(kind(), torch.randn(2, 3, 8, 8))


class Repeated(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).repeat(1, 1, 2, 1).repeat_interleave(2, dim=3)
        return self.b(y + y.new_full((1, 6, 1, 1), 0.5))


def test_repeated_places_are_the_same_codes() -> None:
    torch.manual_seed(0)
    model, batches = Repeated().eval(), [torch.randn(n, 3, 4, 4) for n in (2, 5)]
    plan = tq.plan(model, batches[0])
    assert {site.action for site in plan.sites if site.op.startswith("repeat")} == {"movement"}
    qat = tq.calibrate(tq.prepare(model, batches[0]), batches).eval()
    assert tq.verify(qat, tq.convert(qat), batches, runtimes=("reference", "onnxruntime")).codes_different == 0
