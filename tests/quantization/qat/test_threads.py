"""Evaluating one model from several threads gives what one thread gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import truequant as tq
from tests.training_runs import started


@pytest.mark.alone
def test_a_prepared_and_an_int8_model_in_eight_threads() -> None:
    run = started("w8a8")
    run.train(2)
    prepared = run.model.eval()
    int8 = tq.convert(prepared)
    batches = [torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    for model in (prepared, int8):
        with torch.no_grad():
            expected = [model(x) for x in batches]
        state = {n: t.clone() for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(torch.no_grad()(model), batches))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert all(torch.equal(t, model.state_dict()[n]) for n, t in state.items())
    codes = [int8.codes(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(int8.codes, batches))
        prepared_codes = list(pool.map(lambda x: tq.codes(prepared, x), batches[:8]))
    assert all(torch.equal(a[n], b[n]) for a, b in zip(codes, again, strict=True) for n in a)
    alone = [tq.codes(prepared, x) for x in batches[:8]]
    assert all(torch.equal(a[n], b[n]) for a, b in zip(prepared_codes, alone, strict=True) for n in a)
