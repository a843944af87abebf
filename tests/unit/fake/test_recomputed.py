"""Activation checkpointing of modules recomputes on their quantizers; of parts of a forward, which could not, it is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import truequant as tq
from truequant.errors import PlanError


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(self.norm(self.conv(x)) + x), torch.sigmoid(x)], 1)


class Net(nn.Module):
    """how: what runs the part, of the module itself, of a method, or of a closure."""

    def __init__(self, run: Callable[..., Tensor], how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.part, self.head, self.run, self.how = nn.Conv2d(3, 4, 3), Part(), nn.Linear(8, 2), run, how

    def method(self, x: Tensor) -> Tensor:
        return torch.relu(self.part(x)) + 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.how == "module":
            x = torch.relu(self.run(self.part, x)) + 1.0
        elif self.how == "method":
            x = self.run(self.method, x)
        else:
            x = self.run(lambda y: torch.relu(self.part(y)) + 1.0, x)
        return self.head(x.mean((2, 3)))


def plain(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def kept(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(function, x, use_reentrant=False)  # type: ignore[no-any-return]


def reentrant(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(function, x, use_reentrant=True)  # type: ignore[no-any-return]


def offloaded(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return function(x)


def gradients(run: Callable[..., Tensor], how: str) -> list[Tensor]:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    qat = tq.prepare(Net(plain, how), x)
    qat.run = run
    for scale in (1.0, 2.0):
        qat.zero_grad()
        qat(scale * x).square().mean().backward()
    return [p.grad for p in qat.parameters() if p.grad is not None]


@pytest.mark.parametrize("run", [kept, reentrant, offloaded])
def test_a_module_is_recomputed_to_the_same_bits(run: Callable[..., Tensor]) -> None:
    for found, expected in zip(gradients(run, "module"), gradients(plain, "module"), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("run", [kept, reentrant])
@pytest.mark.parametrize("how", ["method", "closure"])
def test_a_part_of_a_forward_is_refused(run: Callable[..., Tensor], how: str) -> None:
    with pytest.raises(PlanError, match="the model: torch.utils.checkpoint is given a part of its forward") as caught:
        gradients(run, how)
    assert caught.value.fix == "move that part into an nn.Module of its own, prepare, and checkpoint the module"


def test_evaluation_and_gradients_off_are_no_checkpoints() -> None:
    def without(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.no_grad():
            return function(x)

    assert gradients(without, "method")
    assert gradients(offloaded, "method")
    x = torch.randn(4, 3, 8, 8)
    qat = tq.prepare(Net(plain, "method"), x)
    qat(x)
    qat.eval().run = kept
    assert bool(torch.isfinite(qat(x)).all())


def test_batchnorm_that_is_recomputed_counts_twice_as_in_float() -> None:
    """PyTorch's own: its running statistics move in the recomputation again."""
    x = torch.randn(4, 3, 8, 8)
    counts = []
    for model in (Net(kept, "module"), tq.prepare(Net(plain, "module"), x)):
        model.run = kept
        model(x).sum().backward()
        counts.append(int(model.part.norm.num_batches_tracked))
    assert counts == [2, 2]
