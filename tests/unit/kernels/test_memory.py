"""Whose memory quantizers write into: their own, or such as nobody could read any more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant import kernels
from truequant.fake import FakeQuantize, one_pass
from truequant.schemes import QuantScheme, uint8

W = torch.randn(40, 40).requires_grad_()
"""A factor that makes results differentiable."""


def quantizer() -> FakeQuantize:
    """One in a model, with a range."""
    found = FakeQuantize(QuantScheme(uint8))
    found.owns_clock = False
    found(torch.tensor([-1.0, 1.0]))
    return found


def in_place(result: list[Tensor]) -> bool:
    before = result[0].data_ptr()
    y = one_pass.quantized_in_place(quantizer(), result)
    assert y is not None
    return y.data_ptr() == before


def test_a_result_that_nothing_else_holds_is_overwritten() -> None:
    x = torch.randn(40, 40)
    assert in_place([x @ W])
    assert in_place([nn.functional.linear(torch.randn(2, 20, 40), W, W[0])]), "a view of what the product wrote"
    with torch.no_grad():
        assert in_place([x @ W])


@pytest.mark.parametrize("op", [torch.relu, torch.sigmoid, torch.tanh, torch.exp, lambda x: torch.softmax(x, -1)])
def test_what_an_op_keeps_for_its_backward_stays(op: Callable[[Tensor], Tensor]) -> None:
    assert not in_place([op(torch.randn(40, 40) @ W)])


def test_what_somebody_holds_stays() -> None:
    x = torch.randn(40, 40)
    held = x @ W
    assert not in_place([held])
    assert not in_place([held.t()])
    assert not in_place([held[1:]])
    assert not in_place([held.detach()])
    array = (x @ W).detach()
    numbers = array.numpy()
    result = [array]
    del array
    before = numbers.copy()
    in_place(result)
    assert (numbers == before).all()
    assert not in_place([x.expand(3, 40, 40)])
    assert not in_place([W])


@pytest.mark.parametrize("clips", [False, True])
def test_gradients_that_somebody_holds_stay(clips: bool) -> None:
    """A gradient that is kept, given, shared by two branches, or wanted twice."""
    q, x = quantizer(), torch.linspace(-3 if clips else -1, 1, 50).requires_grad_()
    given = torch.randn(50)
    before = given.clone()
    h = x * 2
    y = q(h / 2)
    y.retain_grad()
    y.backward(given, retain_graph=True)
    assert torch.equal(given, before)
    assert torch.equal(y.grad, before)
    first = x.grad.clone()
    y.backward(given)
    assert torch.equal(x.grad, first * 2)
    a = x.detach().clone().requires_grad_()
    b = a * 1.0
    (q(b) + b).backward(given)
    assert torch.equal(a.grad, first + before)


def test_a_hook_sees_the_gradient_before_it_is_masked() -> None:
    q, x, seen = quantizer(), torch.linspace(-3, 3, 50).requires_grad_(), []
    y = q(x * 1.0)
    y.register_hook(lambda g: seen.append(g))
    (y * 2.0).sum().backward()
    assert torch.equal(seen[0], torch.full((50,), 2.0))
    assert x.grad is not None
    assert set(x.grad.tolist()) == {0.0, 2.0}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(16, 16), nn.Linear(16, 16), nn.LayerNorm(16)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(self.norm(x))
        y = torch.nn.functional.gelu(h) + self.b(torch.sigmoid(h))
        return y.transpose(0, 1).softmax(-1) * 3.0


@pytest.mark.parametrize("level", [name for name in kernels.levels() if name != "reference"])
def test_a_model_trains_to_the_bits_of_the_reference(level: str) -> None:
    found = []
    for name in ("reference", level):
        torch.manual_seed(0)
        model = tq.prepare(Block(), torch.randn(2, 5, 16))
        values: list[Tensor] = []
        with kernels.using(name):
            for _ in range(4):
                x = torch.randn(3, 5, 16).requires_grad_()
                y = model(x)
                y.square().sum().backward()
                values += [y.detach().clone(), x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        found.append(values)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_hook_of_a_module_keeps_what_it_saw() -> None:
    model = tq.prepare(Block(), torch.randn(2, 5, 16))
    model(torch.randn(2, 5, 16))
    seen: list[tuple[Tensor, Tensor]] = []
    model.norm.register_forward_hook(lambda m, args, y: seen.append((args[0], args[0].clone())))
    model(torch.randn(2, 5, 16)).sum().backward()
    for kept, copy in seen:
        assert torch.equal(kept, copy)
