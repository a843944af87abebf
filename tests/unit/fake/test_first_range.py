"""The first range of a quantizer that is called more than once in a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import truequant as tq


def test_all_calls_of_the_first_step_make_the_first_range() -> None:
    """A grid that several ops write (a concat, a shared module): none of them counts for a tenth of the others."""
    small, large = torch.linspace(-1, 1, 9)[:, None], torch.linspace(-4, 4, 9)[:, None]

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Linear(1, 1, bias=False)
            nn.init.ones_(self.same.weight)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.same(x), self.same(y)])

    for calibrated in (True, False):
        qat = tq.prepare(Joined(), (small, large))
        if calibrated:
            tq.calibrate(qat, [(small, large)])
        else:
            qat.train()(small, large)
            qat.eval()
        (grid,) = (q for n, q in tq.quantizers(qat) if n.startswith("same.output"))
        assert float(grid.scale) == pytest.approx(8 / 255, rel=0.01)
        qat.train()
        for _ in range(2):
            qat(small / 10, large / 10)  # from here on the average moves
        qat.eval()
        assert float(grid.scale) == pytest.approx((0.81 * 8 + 0.19 * 0.8) / 255, rel=0.01)


def test_binary_values_evaluate_as_they_train() -> None:
    quantizer = tq.FakeQuantize(tq.QuantScheme(tq.types.int1))
    x = torch.tensor([-3.0, -0.1, 0.0, 0.2, 2.0])
    trained = quantizer(x)
    assert torch.equal(trained.sign(), torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0]))
    assert torch.equal(quantizer.eval()(x), trained)
