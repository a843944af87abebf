from __future__ import annotations

import pytest
import torch

from tests.programs import edge
from truequant.integer import storage
from truequant.integer.storage import elementwise


@pytest.mark.parametrize(
    ("codes", "dtype"),
    [
        ((0, 255), torch.uint8),
        ((0, 15), torch.uint8),
        ((0, 1), torch.uint8),
        ((-128, 127), torch.int8),
        ((-7, 7), torch.int8),
        ((-1, 255), torch.int16),
        ((-128, 128), torch.int16),
        ((-32768, 32767), torch.int16),
        ((0, 32767), torch.int16),
        ((0, 65535), torch.int32),
    ],
)
def test_the_narrowest_type_that_holds_the_codes(codes: tuple[int, int], dtype: torch.dtype) -> None:
    assert storage.storage(edge(codes=codes)) == dtype


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_elementwise_broadcasts_in_pieces(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "CHUNK", chunk)
    a, b = torch.arange(6).reshape(2, 3, 1), torch.arange(4)
    got = elementwise(lambda p, q: 10 * p + q, torch.int16, a, b)
    assert got.dtype == torch.int16
    assert torch.equal(got.long(), 10 * a + b)
    assert elementwise(torch.neg, torch.int8, torch.tensor(3)).shape == ()
    assert elementwise(torch.neg, torch.int8, torch.empty(0, 3)).shape == (0, 3)
