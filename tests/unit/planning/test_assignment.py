"""`with_items` against torch's own assignment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from truequant.planning.assignment import with_items

X = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
MASK = X % 3 == 0
CASES: list[tuple[Any, Any]] = [
    (0, 1.5), (-1, 1.5), (slice(None), 2), (slice(1, None), torch.ones(())), (slice(5, 9), 1.0), (..., 7.0),
    ((slice(None), 1), 0.0), ((slice(None), slice(0, 2)), 3.0), ((..., 2), torch.randn(2, 3, 4)), ((..., 2), torch.randn(4)),
    ((slice(None), slice(1, 3), slice(None), slice(-2, None)), torch.randn(2, 2, 4, 2)),
    ((slice(None), slice(1, 3), slice(None), slice(-2, None)), torch.randn(1, 1, 1, 4, 1)),
    ((slice(None), 1, slice(None), 3), torch.randn(2, 4)), ((slice(None), 1, slice(None), 3), torch.randn(4)),
    ((1, 2, 3, 4), torch.ones(())), ((slice(None), slice(None, None, 2)), 9.0),
    ((slice(None), slice(None, None, 2), 1), 9), ((slice(None), slice(None, None, 2)), torch.randn(2, 2, 4, 5)),
    (MASK, 0.25), (MASK, torch.tensor(0.25)), (MASK[:, 0, 0, 0], 4.0), (MASK, torch.arange(40.0)),
    ((slice(None), torch.tensor([0, 2])), 6.0), ((slice(None), [0, 2]), torch.randn(2, 2, 4, 5)), (torch.tensor([1]), 8.0),
    ((slice(None), None, 0), torch.randn(2, 1, 4, 5)), ((slice(None), slice(2, 1)), 5.0),
]  # fmt: skip


@pytest.mark.parametrize(("index", "value"), CASES)
def test_it_is_torchs_assignment(index: Any, value: float | Tensor) -> None:
    expected = X.clone()
    expected[index] = value
    before = X.clone()
    found = with_items(X, index, value)
    assert torch.equal(found, expected)
    assert found.dtype == X.dtype
    assert torch.equal(X, before)  # nothing was overwritten


def test_gradients_reach_what_stays_and_what_comes() -> None:
    x, value = X.clone().requires_grad_(), torch.randn(2, 4, requires_grad=True)
    with_items(x, (slice(None), 1, slice(None), 3), value).pow(2).sum().backward()
    assert x.grad is not None
    assert value.grad is not None
    stays = torch.ones_like(X)
    stays[:, 1, :, 3] = 0
    assert torch.equal(x.grad, 2 * X * stays)
    assert torch.equal(value.grad, 2 * value.detach())
