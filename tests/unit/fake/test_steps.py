"""What a quantizer does in a step is decided once, rightly in every state it can be in, and read alike by all kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils.checkpoint import checkpoint

import truequant as tq
from tests.unit.kernels.levels import same
from truequant import kernels
from truequant.fake import FakeQuantize, WeightQuantizer, quantizers

READERS = ("quantize", "quantize_norm", "layer_operands", "shifted_bias")

pytestmark = pytest.mark.skipif(kernels.compiled() is None, reason="no compiled kernels here")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.mix = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + self.mix(x))


class Net(nn.Module):
    """Layers with and without BatchNorm, sums, tables, movement and pooling behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.block = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), Block()
        self.hidden, self.last, self.head = nn.Linear(36, 8), nn.LayerNorm(8), nn.Linear(8, 5)
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        y = checkpoint(self.block, y, use_reentrant=False) if self.recompute else self.block(y)
        return self.head(F.gelu(self.last(self.hidden(y.flatten(1)))))


def of(model: nn.Module, kind: type) -> list[Any]:
    return [q for _, q in quantizers(model) if isinstance(q, kind)]


def ordinary(model: nn.Module) -> None:
    pass


def silent(model: nn.Module) -> None:
    for q in of(model, FakeQuantize)[1::2]:
        q.observing = False


def switched_off(model: nn.Module) -> None:
    for q in of(model, FakeQuantize)[::3] + of(model, WeightQuantizer)[::2]:
        q.quantizing = False


def held(model: nn.Module) -> None:
    for q in of(model, WeightQuantizer)[::2]:
        q.hold(q.scale * 0.75)


def part_in_evaluation(model: Any) -> None:
    model.block.eval()


def recomputed(model: Any) -> None:
    model.recompute = True
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.0


def hooked(model: nn.Module) -> None:
    for q in of(model, FakeQuantize) + of(model, WeightQuantizer):
        q.register_forward_hook(lambda module, args, y: y * 1.0)


def frozen(model: nn.Module) -> None:
    tq.freeze(model)


STATES = (ordinary, silent, switched_off, held, part_in_evaluation, recomputed, hooked, frozen)


def train(state: Callable[[nn.Module], None], preset: str = "w8a8") -> list[Tensor]:
    """Results, gradients and state of four steps, the first of which sets the ranges; three forwards in one of them."""
    torch.manual_seed(0)
    model = tq.prepare(Net(), torch.randn(2, 3, 8, 8), preset)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    found: list[Tensor] = []
    for step in range(4):
        if step == 1:
            state(model)
        optimizer.zero_grad()
        ys = [model(torch.randn(4, 3, 8, 8)) for _ in range(3 if step == 2 else 1)]
        torch.stack(ys).square().mean().backward()
        optimizer.step()
        found += [*(y.detach() for y in ys), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    return [*found, *(v.detach().double().reshape(-1) for v in model.state_dict().values())]


def asked(owner: dict[str, Any]) -> tuple[bool, bool, bool]:
    """What a quantizer of activations does in a call, in questions of our own: whether it observes, commits, has no range."""
    clock = owner["clock"]
    observes = owner["observing"] and clock.state == "training" and torch._C._current_graph_task_id() == -1
    first = not owner["_calibrated"]
    return observes, observes and not first and owner["_seen_step"] != clock.step, observes and first


def by_questions(kernel: Any) -> dict[str, Callable[..., Any]]:
    """The functions that read a step, by others that are told everything; the two of weights leave it to Python."""

    def grid(owner: dict[str, Any]) -> tuple[tuple[Any, ...], bool]:
        observes, commits, first = asked(owner)
        observer = owner["_modules"]["observer"]._buffers if observes else None
        return (owner["_buffers"], observer, owner["compiled_scheme"], commits), first

    def quantize(x: Any, other: Any, owner: dict[str, Any], step: Any, *clip: Any) -> Any:
        told, first = grid(owner)
        return kernel.fake_quantize(x, other, *told, *clip, first)

    def quantize_norm(*arguments: Any) -> Any:
        told, first = grid(arguments[7])
        return kernel.fake_quantize_norm(*arguments[:7], first, *told, *arguments[9:])

    return {"quantize": quantize, "quantize_norm": quantize_norm}


@contextmanager
def counted(reads: bool) -> Iterator[dict[str, int]]:
    """How often each of the functions read a step and answered; others do their work where they may not."""
    kernel: Any = kernels.compiled()
    calls = dict.fromkeys(READERS, 0)

    def call(name: str, function: Callable[..., Any], *args: Any) -> Any:
        y = function(*args)
        calls[name] += y is not NotImplemented
        return y

    with pytest.MonkeyPatch.context() as patch:
        others = {} if reads else {name: lambda *args: NotImplemented for name in READERS} | by_questions(kernel)
        for name in READERS:
            patch.setattr(kernel, name, others.get(name) or partial(call, name, getattr(kernel, name)))
        yield calls


@pytest.mark.parametrize("preset", ["w8a8", "w4a4", "w7a8"])
@pytest.mark.parametrize("state", STATES, ids=lambda s: s.__name__)
def test_every_state_is_bit_for_bit_what_python_makes_of_it(state: Callable[[nn.Module], None], preset: str) -> None:
    with counted(True):
        read = train(state, preset)
    with counted(False) as none:
        by_questions = train(state, preset)
    assert not any(none.values())
    assert all(same(a, b) for a, b in zip(read, by_questions, strict=True))


def test_ordinary_steps_are_done_by_kernels() -> None:
    with counted(True) as calls:
        train(ordinary)
    # Weights have their ranges in the first of the six forwards already; activations are observed there, and then quantized.
    assert calls == {"quantize": 7 * 8, "quantize_norm": 7 * 1, "layer_operands": 6 * 5, "shifted_bias": 6 * 2}


def test_a_hook_on_every_module_sees_the_quantizers_of_inputs_and_weights() -> None:
    model = tq.prepare(Net(), torch.randn(2, 3, 8, 8))
    model(torch.randn(4, 3, 8, 8))
    seen: list[nn.Module] = []
    hook = module_hooks.register_module_forward_hook(lambda module, args, y: seen.append(module))
    try:
        model(torch.randn(4, 3, 8, 8))
    finally:
        hook.remove()
    assert all(any(m is q for m in seen) for q in of(model, WeightQuantizer))
    assert any(m is model.quantizers["input_0"] for m in seen)
