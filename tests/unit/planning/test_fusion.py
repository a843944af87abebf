"""What is fused into a layer: two clamps behind it become the one that they are."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import truequant as tq

Ends = tuple[float | None, float | None]
CLAMPS: tuple[Ends, ...] = ((None, 6.0), (0.0, None), (0.0, 6.0), (1.0, 4.0), (7.0, 9.0), (-3.0, -1.0), (-2.0, 2.5))


class Clamped(nn.Module):
    def __init__(self, first: Ends, second: Ends) -> None:
        super().__init__()
        self.fc, self.first, self.second = nn.Linear(3, 4), first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(torch.clamp(self.fc(x), *self.first), *self.second)


@pytest.mark.parametrize(("first", "second"), list(product(CLAMPS, CLAMPS)))
def test_two_clamps_are_one(first: Ends, second: Ends) -> None:
    site = next(s for s in tq.plan(Clamped(first, second), torch.randn(2, 3)).sites if s.name == "fc")
    values = torch.linspace(-12, 12, 481, dtype=torch.float64)
    both = values.clamp(*first).clamp(*second)
    assert torch.equal(values.clamp(site.minimum, site.maximum), both)
    ends = torch.tensor([-1e9, 1e9], dtype=torch.float64).clamp(*first).clamp(*second).tolist()
    open_ends = (first[0] is None and second[0] is None, first[1] is None and second[1] is None)
    assert [site.minimum, site.maximum] == [None if open_ else end for open_, end in zip(open_ends, ends, strict=True)]
