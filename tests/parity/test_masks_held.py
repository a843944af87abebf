"""`x[:, self.mask]`: a mask that a module holds takes places that are known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import truequant as tq

X = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
ROWS = [True, False, True, True]
TABLE = np.random.default_rng(0).random((4, 5)) > 0.4


class Masked(nn.Module):
    def __init__(self, mask: Tensor, buffer: bool, front: bool) -> None:
        super().__init__()
        self.layer, self.front = nn.Linear(8, 5), front
        if buffer:
            self.register_buffer("mask", mask)
        else:
            self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y[:, self.mask] if self.front else y[..., self.mask]


CASES: dict[str, tuple[Tensor, bool, bool]] = {
    "rows, a buffer": (torch.tensor(ROWS), True, True),
    "columns, an attribute": (torch.tensor([False, True, True, False, True]), False, False),
    "both": (torch.from_numpy(TABLE), True, True),
}


@pytest.mark.parametrize("name", CASES)
def test_codes_are_taken_where_the_mask_says_yes(name: str) -> None:
    mask, buffer, front = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a mask with a place in the plan
        qat = tq.calibrate(tq.prepare(Masked(mask, buffer, front), X), [X], progress=False).eval()
    int8 = tq.convert(qat)
    with torch.no_grad():
        whole = qat.layer(X).numpy()
    want = whole[:, mask.numpy()] if front else whole[..., mask.numpy()]
    for batch in (1, 3):
        assert torch.equal(int8(X[:batch]), torch.from_numpy(want[:batch]))
    assert str(tq.verify(qat, int8, [X]).runtimes["onnxruntime"].grade) in ("EXACT", "EXACT BETWEEN ISLANDS")
