"""Ops that share a training pass with their quantizer: the plan finds them, and what they compute is what the ops compute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import truequant as tq
from tests.unit.kernels.levels import LEVELS, same
from truequant import kernels
from truequant.fake import one_pass, quantizers


class Block(nn.Module):
    """A residual block as torchvision writes it, with functions and modules, in place and not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class Net(nn.Module):
    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6())
        self.block, self.mid = Block(), nn.Conv2d(8, 6, 1)
        self.head, self.recompute = nn.Linear(6, 5), recompute

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = checkpoint(self.block, y, use_reentrant=False) if self.recompute else self.block(y)
        y = torch.clamp(self.mid(y), -0.5, 1.25)
        return self.head(F.hardtanh(y, -0.4, 1.0).mean((2, 3)))


CLAMPS = tq.Fusions(norm=False)
NONE = tq.Fusions(clamp=False, add=False, norm=False)


def prepared(fusions: tq.Fusions, recompute: bool = False, **changes: object) -> nn.Module:
    torch.manual_seed(3)
    model = Net(recompute)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
    return tq.prepare(model, torch.randn(2, 3, 8, 8), replace(tq.QConfig(**changes), fusions=fusions))  # type: ignore[arg-type]


def train(model: nn.Module, steps: int = 4, shape: Callable[[Tensor], Tensor] = lambda x: x) -> list[Tensor]:
    torch.manual_seed(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        y = model(shape(torch.randn(6, 3, 8, 8)))
        y.square().mean().backward()
        optimizer.step()
        found += [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    return [*found, *(v.detach().double().reshape(-1) for v in model.state_dict().values())]


def test_the_plan_names_them() -> None:
    plan = tq.plan(Net(), torch.randn(2, 3, 8, 8))
    assert {s.name: s.quantized_at for s in plan.sites if s.quantized_at} == {
        "stem.1": "stem.2", "stem.2": "stem.2", "block.bn1": "block.relu_0", "block.relu_0": "block.relu_0",
        "block.bn2": "block.bn2", "block.add_0": "block.relu", "block.relu": "block.relu", "hardtanh_0": "hardtanh_0",
    }  # fmt: skip
    off = tq.plan(Net(), torch.randn(2, 3, 8, 8), tq.QConfig(fusions=NONE))
    assert not any(s.quantized_at for s in off.sites)


@pytest.mark.parametrize("level", LEVELS)
def test_clamps_and_sums_are_bit_for_bit_the_ops(level: str) -> None:
    with kernels.using(level):
        fused, apart = train(prepared(CLAMPS)), train(prepared(NONE))
    with kernels.using("reference"):
        reference = train(prepared(tq.Fusions()))
    assert all(same(a, b) for a, b in zip(fused, apart, strict=True))
    assert all(same(a, b) for a, b in zip(fused, reference, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_norm_differs_by_rounding_only(channels_last: bool) -> None:
    """Its sums are exact to double precision; a code may differ where a value lies at the edge of two."""

    def shape(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if channels_last else x

    def one(fusions: tq.Fusions) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        model = prepared(fusions)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model(shape(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))))
        model.zero_grad()
        y = model(shape(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))))
        y.square().mean().backward()
        return y.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, dict(model.state_dict())

    (y1, g1, s1), (y2, g2, s2) = one(tq.Fusions()), one(CLAMPS)
    torch.testing.assert_close(y1, y2, rtol=1e-4, atol=2e-3)
    for name in s1:
        torch.testing.assert_close(s1[name], s2[name], rtol=1e-4, atol=1e-5)
    assert g1.keys() == g2.keys()
    for name in g1.keys() - {"block.conv2.bias"}:  # which is 0 but for rounding: a BatchNorm follows
        error = (g1[name] - g2[name]).norm() / g2[name].norm().clamp(min=1e-6)
        assert error < 0.02, f"{name}: {error}"


def test_levels_agree_on_a_norm_bit_for_bit() -> None:
    for level in LEVELS[1:]:
        with kernels.using(LEVELS[0]):
            first = train(prepared(tq.Fusions()), 3)
        with kernels.using(level):
            other = train(prepared(tq.Fusions()), 3)
        assert all(same(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("fusions", [tq.Fusions(), CLAMPS], ids=["all", "clamps"])
def test_recomputation_gives_the_same_gradients(fusions: tq.Fusions) -> None:
    plain, recomputed = prepared(fusions), prepared(fusions, recompute=True)
    for m in (*plain.modules(), *recomputed.modules()):
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.0  # as in torch, a recomputed BatchNorm moves its running statistics once more
    x = torch.randn(6, 3, 8, 8)
    for _ in range(3):
        for model in (plain, recomputed):
            model.zero_grad()
            model(x).square().mean().backward()
        for (name, p), q in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
            assert p.grad is None or same(p.grad, q.grad), name  # type: ignore[arg-type]


def test_every_quantizer_observes_in_every_step() -> None:
    model = prepared(tq.Fusions())
    for step in range(1, 4):
        model(torch.randn(6, 3, 8, 8)).sum().backward()
        for name, q in quantizers(model):
            if isinstance(q, tq.FakeQuantize):
                assert bool(torch.isfinite(q.observer.pending_maximum)), name
                assert int(q.observer.updates) == step - 1, name


def test_a_hook_sees_what_the_module_computes() -> None:
    """A BatchNorm with a forward hook runs apart from its quantizer, and so does an op whose quantizer has one."""
    model, apart = prepared(tq.Fusions()), prepared(NONE)
    seen: list[Tensor] = []
    for m in (model, apart):
        m.stem[1].register_forward_hook(lambda module, args, y: seen.append(y.detach().clone()))
        m.block.relu.quantizers["output"].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    x = torch.randn(6, 3, 8, 8)
    model(x), apart(x)
    assert float(seen[0].min()) < 0
    assert torch.equal(seen[0], seen[2])
    assert seen[1].unique().numel() > 256


def test_it_converts_with_no_code_different() -> None:
    model = prepared(tq.Fusions())
    train(model)
    model.eval()
    assert tq.verify(model, tq.convert(model), [torch.randn(4, 3, 8, 8)]).codes_different == 0


def test_copies_and_restored_models() -> None:
    model = prepared(tq.Fusions())
    train(model, 2)
    twin = copy.deepcopy(model)
    assert all(same(a, b) for a, b in zip(train(model, 2), train(twin, 2), strict=True))
    restored = tq.restore_float(copy.deepcopy(model)).train()
    with tq.quantizers_off(model):
        x = torch.randn(6, 3, 8, 8)
        assert torch.equal(model.train()(x), restored(x))


def test_nothing_more_is_kept_than_float_keeps() -> None:
    """Distinct storages saved for the backward, in bytes, against the float model."""

    def kept(model: nn.Module) -> int:
        storages: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        x = torch.randn(32, 3, 16, 16)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            y = model(x)
        assert y.requires_grad
        return sum(storages.values())

    model = prepared(tq.Fusions())
    model(torch.randn(6, 3, 8, 8))
    assert kept(model) <= 1.05 * kept(Net())


class Permuted(nn.Module):
    """A shortcut that is a view of a convolution's result, as in vision transformers, and what only such a layout allows."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.norm = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 6), nn.LayerNorm(6)
        self.head, self.first = nn.Linear(96, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = y + self.mix(self.norm(y))
        return self.head(y.transpose(1, 2).view(len(y), -1)) + self.first(y)[:, 0]


@pytest.mark.parametrize("level", LEVELS)
def test_a_permuted_shortcut_is_laid_out_once_and_computes_the_same(level: str) -> None:
    def made(fusions: tq.Fusions) -> nn.Module:
        torch.manual_seed(3)
        return tq.prepare(Permuted(), torch.randn(2, 3, 8, 8), tq.QConfig(fusions=fusions))

    with kernels.using(level):
        fused, apart = train(made(tq.Fusions())), train(made(NONE))
    assert all(same(a, b) for a, b in zip(fused, apart, strict=True))


def test_operands_of_unequal_layouts_share_a_pass() -> None:
    plain, last = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tokens, rows = torch.randn(2, 6, 5).transpose(1, 2), torch.randn(2, 5, 6)
    for a, b, strides in (
        (plain, last, plain.stride()), (last, plain, last.stride()),  # as torch lays the sum out
        (rows, tokens, rows.stride()), (tokens, rows, rows.stride()),
    ):  # fmt: skip
        found = one_pass._in_one_layout(a, b)
        assert [f.stride() for f in found] == [strides, strides]
        assert all(torch.equal(f, v) for f, v in zip(found, (a, b), strict=True))
    odd, other = torch.randn(5, 6, 2).permute(2, 0, 1), torch.randn(6, 5, 2).permute(2, 1, 0)
    assert one_pass._in_one_layout(odd, other) == (odd, other)
    assert one_pass._in_one_layout(rows, torch.randn(6))[0] is rows
