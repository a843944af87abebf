"""Hooks on modules: planned where they are there before `prepare`, and no calls of the forward where they come later."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import truequant as tq
from truequant.errors import PlanError

WHERE = ("block.linear", "block", "head")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).clamp(0.0, 2.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head = Block(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)).clamp(-1.0, 1.0)


X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


def looks(module: nn.Module, args: Any, output: Tensor) -> None:
    """Calls the op that the forward around it calls."""
    output.clamp(0.0, 0.1).mean()


def looks_before(module: nn.Module, args: tuple[Tensor]) -> None:
    args[0].clamp(0.0, 0.1).mean()


def changes(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.clamp(-0.3, 0.3)


def changes_before(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].clamp(-0.3, 0.3),)


def prepared(model: nn.Module) -> nn.Module:
    return tq.calibrate(tq.prepare(model, X), [X])


def trained(qat: nn.Module) -> None:
    qat.train()(X).square().mean().backward()


def numbers(qat: nn.Module) -> list[Tensor]:
    """In evaluation, and of the converted model."""
    return [qat.eval()(X).detach(), tq.convert(qat)(X)]


@pytest.mark.parametrize("where", WHERE)
def test_a_hook_that_looks_on_moves_no_site(where: str) -> None:
    expected = numbers(prepared(Net()))[0]
    for forward in (True, False):
        qat = prepared(Net())
        module = qat.get_submodule(where)
        handle = module.register_forward_hook(looks) if forward else module.register_forward_pre_hook(looks_before)
        trained(copy.deepcopy(qat))
        assert all(torch.equal(y, expected) for y in numbers(qat))
        handle.remove()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("where", [*WHERE, ""])
@pytest.mark.parametrize("hook", [looks, looks_before, changes, changes_before])
def test_a_hook_from_before_is_planned(where: str, hook: Callable[..., Any]) -> None:
    """Those of the model itself run around the plan."""
    model = Net()
    module = model.get_submodule(where)
    if hook in (looks, changes):
        module.register_forward_hook(hook)
    else:
        module.register_forward_pre_hook(hook)
    qat = prepared(model)
    trained(copy.deepcopy(qat))
    evaluated, converted = numbers(qat)
    assert torch.equal(evaluated, converted)
    assert float((evaluated - model.eval()(X)).abs().max().detach()) < 0.05  # 0.7 without the hook


@pytest.mark.parametrize("where", WHERE)
def test_a_later_hook_that_changes_values_raises(where: str) -> None:
    for training in (True, False):
        for before in (True, False):
            qat = prepared(Net()).train(training)
            module = qat.get_submodule(where)
            if before:
                module.register_forward_pre_hook(changes_before)
            else:
                module.register_forward_hook(changes)
            with pytest.raises(PlanError) as caught:
                qat(X)
            hook = changes_before if before else changes
            shape = (64, 4) if where == "head" and not before else (64, 8)
            assert str(caught.value) == (
                f"'{where}': a forward {'pre-hook' if before else 'hook'} that was registered after the model was prepared "
                "returns other values\n"
                f"  got:      a new tensor of shape {shape} from {hook!r}\n"
                "  expected: None, or what it was given\n"
                "  fix:      register the hook first, then prepare: what it computes is then planned, quantized and converted"
            )


def test_a_hook_may_return_a_view_or_a_cast() -> None:
    qat = prepared(Net())
    expected = qat.eval()(X)
    qat.get_submodule("head").register_forward_pre_hook(lambda m, args: (args[0].view_as(args[0]),))
    qat.get_submodule("block").register_forward_hook(lambda m, args, y: y.double())
    qat.get_submodule("head").register_forward_pre_hook(lambda m, args: (args[0].float(),))
    assert torch.equal(qat(X), expected)


def test_options_of_hooks_are_kept() -> None:
    qat = prepared(Net())
    seen: list[Any] = []
    head = qat.get_submodule("head")
    head.register_forward_hook(lambda m, args, kwargs, y: seen.append("second"), with_kwargs=True)
    head.register_forward_hook(lambda m, args, y: seen.append("first"), prepend=True)
    head.register_forward_pre_hook(lambda m, args, kwargs: seen.append("before"), with_kwargs=True)
    qat.eval()(X)
    assert seen == ["before", "first", "second"]


def test_hooks_of_torch_are_found_by_their_class_and_travel() -> None:
    qat = prepared(Net())
    head = qat.get_submodule("head")
    prune.random_unstructured(head, "weight", 0.5)
    (hook,) = head._forward_pre_hooks.values()
    assert isinstance(hook, prune.RandomUnstructured)
    with torch.no_grad():  # a weight that was computed is copied without its graph alone
        pruned = qat.eval()(X)
    assert torch.equal(copy.deepcopy(qat)(X), pruned)
    prune.remove(head, "weight")
    assert not head._forward_pre_hooks
    head.register_forward_hook(looks)
    stored = io.BytesIO()
    torch.save(qat, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored, weights_only=False)(X), qat(X))


@pytest.mark.filterwarnings("ignore")
def test_compiled_with_hooks() -> None:
    qat = prepared(Net()).eval()
    expected = qat(X)
    qat.get_submodule("block").register_forward_hook(looks)
    assert torch.equal(torch.compile(qat, fullgraph=True)(X), expected)
