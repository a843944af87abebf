"""What people do with models: copies, pickles, memory formats, dtypes, functional calls. Evaluation keeps its bits."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from tests.models import FAMILIES, leaves

NAMES = ("MobileNetV3", "U-Net", "DenseNet", "ConvNeXt", "Transformer encoder")


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, list[Tensor]]:
    """A prepared model, an input, and what it evaluates to."""
    family = FAMILIES[request.param]
    torch.manual_seed(0)
    x = family.inputs()
    qat = tq.prepare(family.make(), x)
    qat(x)
    qat.eval()
    with torch.no_grad():
        return qat, x, leaves(qat(x))


def same(expected: list[Tensor], found: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("way", COPIES)
def test_copies_evaluate_alike(trained: tuple[nn.Module, Tensor, list[Tensor]], way: str) -> None:
    qat, x, expected = trained
    twin = COPIES[way](qat)
    with torch.no_grad():
        assert same(expected, leaves(twin(x)))
    assert same(expected, leaves(tq.convert(twin)(x)))


def test_channels_last(trained: tuple[nn.Module, Tensor, list[Tensor]]) -> None:
    qat, x, expected = trained
    if x.dim() != 4:
        assert x.dim() == 2  # word numbers
        return
    twin = copy.deepcopy(qat).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        assert same(expected, leaves(twin(x.contiguous(memory_format=torch.channels_last))))


def test_functional_call(trained: tuple[nn.Module, Tensor, list[Tensor]]) -> None:
    qat, x, expected = trained
    with torch.no_grad():
        assert same(expected, leaves(torch.func.functional_call(qat, dict(qat.named_parameters()), (x,))))


def test_bfloat16_trains_and_converts(trained: tuple[nn.Module, Tensor, list[Tensor]]) -> None:
    qat, x, _ = trained
    twin = copy.deepcopy(qat).to(torch.bfloat16).train()
    x = x.to(torch.bfloat16) if x.is_floating_point() else x
    torch.stack([t.float().square().mean() for t in leaves(twin(x))]).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in twin.parameters() if p.grad is not None)
    assert tq.convert(twin.eval()).ops()


def test_autocast_trains(trained: tuple[nn.Module, Tensor, list[Tensor]]) -> None:
    qat, x, _ = trained
    twin = copy.deepcopy(qat).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.stack([t.float().square().mean() for t in leaves(twin(x))]).sum()
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in twin.parameters() if p.grad is not None)
