"""Linear layers keep what their operands were made from: less memory, and the gradients of torch's own, to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import truequant as tq
from truequant import kernels
from truequant.fake import products

pytestmark = pytest.mark.skipif(
    kernels.compiled() is None, reason="the linear layer under test is compiled, and `make setup` found no compiler"
)


class Attention(nn.Module):
    """An encoder block: attention keeps its result, which the quantizer behind it copies."""

    def __init__(self, width: int = 32, bias: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.up, self.down = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).reshape(n, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class WrittenOut(Attention):
    """The same block, its attention by hand: quantized scores are a tensor, which torch's fused attention never makes."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), -1) @ v


class Checkpointed(nn.Module):
    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(32, 32), nn.ModuleList([Attention(), Attention()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


class Reentrant(Checkpointed):
    reentrant = True


class Shared(nn.Module):
    """One weight in two calls, one activation in two layers, and a function's layer on a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32, bias=False)
        self.weight = nn.Parameter(torch.randn(8, 32) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        h = torch.sigmoid(self.a(h)) + self.b(h)
        return F.linear(h.flatten(0, 1), self.weight)


def prepared(make: Callable[[], nn.Module], preset: str = "w8a8", linear: bool = False) -> nn.Module:
    """linear: sums of codes in integers, which are not torch's to the last bit."""
    torch.manual_seed(0)
    model = make()
    config = replace(tq.QConfig.preset(preset), fusions=tq.Fusions(linear=linear))
    qat = tq.prepare(model, torch.randn(2, 6, 32).requires_grad_(), config)
    qat(torch.randn(2, 6, 32).requires_grad_())
    return qat


class Runs:
    """Which calls of `product` a kernel took."""

    def __init__(self) -> None:
        self.native = self.all = 0


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found, product = Runs(), products.product

    def counted(*operands: Any) -> Tensor:
        y = product(*operands)
        found.all += 1
        found.native += y.grad_fn is not None and y.grad_fn.name() == "LinearBackward"
        return y

    monkeypatch.setattr("truequant.fake.sites.product", counted)
    monkeypatch.setattr("truequant.fake.layer_steps.product", counted)
    monkeypatch.setattr("truequant.fake.float_linears.product", counted)
    return found


def unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truequant.fake.sites.product", lambda linear, *operands: linear(*operands))
    monkeypatch.setattr("truequant.fake.layer_steps.product", lambda linear, *operands: linear(*operands))
    monkeypatch.setattr("truequant.fake.float_linears.product", lambda linear, *operands: linear(*operands))


def steps(qat: nn.Module, count: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Results and gradients of some steps of two forwards each: gradients accumulate."""
    torch.manual_seed(1)
    found = []
    optimizer = torch.optim.SGD(qat.parameters(), 0.05)
    for _ in range(count):
        optimizer.zero_grad()
        for _ in range(2):
            x = torch.randn(3, 6, 32, dtype=dtype).requires_grad_()
            y = qat(x)
            y.float().square().mean().backward()
            found += [y.detach().clone(), x.grad]
        found += [p.grad.clone() for p in qat.parameters() if p.grad is not None]
        optimizer.step()
    return found


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


CASES: list[tuple[Callable[[], nn.Module], str]] = [
    *((Attention, name) for name in ("w8a8", "w8a8-per-tensor", "w8a8-pow2", "w4a16", "w8a8-dynamic")),
    (lambda: Attention(bias=False), "w8a8"), (Shared, "w8a8"), (Shared, "w4a16"), (Checkpointed, "w8a8"), (Reentrant, "w8a8"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "preset"), CASES)
def test_gradients_are_those_of_torch(
    make: Callable[[], nn.Module], preset: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = steps(prepared(make, preset))
    assert runs.native > 0
    unfused(monkeypatch)
    assert equal(found, steps(prepared(make, preset)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [Attention, Checkpointed])
def test_other_dtypes(make: Callable[[], nn.Module], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps(prepared(make).to(dtype), dtype=dtype)
    unfused(monkeypatch)
    assert equal(found, steps(prepared(make).to(dtype), dtype=dtype))


def test_learned_scales_and_autocast(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def learned() -> list[Tensor]:
        qat = prepared(Attention, "w4a4")
        with torch.autocast("cpu", torch.bfloat16):
            mixed = steps(prepared(Attention), 2)
        return [*steps(qat), *mixed]

    found = learned()
    unfused(monkeypatch)
    assert equal(found, learned())


@pytest.mark.parametrize("frozen", ["weights", "all but biases", "the first"])
def test_frozen_parameters(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        qat = prepared(Attention)
        for name, p in qat.named_parameters():
            p.requires_grad = not (
                name.endswith("weight") if frozen == "weights"
                else not name.endswith("bias") if frozen == "all but biases" else name.startswith("qkv")
            )  # fmt: skip
        return steps(qat)

    found = run()
    unfused(monkeypatch)
    assert equal(found, run())


# -- memory ----------------------------------------------------------------------------------------------------------------
def kept(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Bytes of the distinct storages that a forward keeps for its backward: all, and those of no parameter."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    y.sum().backward()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(sizes.values()), sum(size for address, size in sizes.items() if address not in own)


def test_a_block_keeps_hardly_more_than_float() -> None:
    x = torch.randn(32, 64, 192, requires_grad=True)
    block = WrittenOut(192)
    plain = Attention(192)
    plain.load_state_dict(block.state_dict())
    qat = tq.prepare(plain, x.detach())
    for _ in range(2):
        qat(x).sum().backward()
    for mine, theirs in zip(kept(qat, x), kept(block, x), strict=True):
        assert mine <= 1.05 * theirs


def test_a_block_holds_no_more_than_float_without_hooks() -> None:
    """What the allocator gave out and did not get back: weights are not kept, nor is what attention keeps kept twice."""
    x = torch.randn(32, 64, 192, requires_grad=True)
    block = WrittenOut(192)
    plain = Attention(192)
    plain.load_state_dict(block.state_dict())
    qat = tq.prepare(plain, x.detach())

    def held(model: nn.Module) -> int:
        model(x).sum().backward()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            y = model(x)
        found = sum(event.self_cpu_memory_usage for event in profile.key_averages())
        y.sum().backward()
        return int(found)

    held(qat)
    given = x.numel() * x.element_size()  # was there before, and is read on a grid
    assert held(qat) <= 1.01 * (held(block) + given)


# -- where operands cannot be made again -------------------------------------------------------------------------------------
def one(change: Callable[[Tensor, Tensor], Tensor | None]) -> tuple[list[Any], list[Any]]:
    """Gradients by a kernel and by torch where `change` acts on what was quantized and on the quantized."""

    def run(linear: Callable[..., Tensor]) -> list[Any]:
        torch.manual_seed(2)
        quantizer = tq.fake.FakeQuantize(tq.schemes.QuantScheme(tq.schemes.uint8))
        weights = tq.fake.WeightQuantizer(tq.schemes.QuantScheme(tq.schemes.int8, tq.schemes.PerChannel(0)), 5)
        leaf, w = torch.randn(4, 7, 8).requires_grad_(), nn.Parameter(torch.randn(5, 8))
        quantizer(leaf.detach())
        source = leaf * 1.5
        made = quantizer(source)
        x = change(source, made)
        y = linear(F.linear, made if x is None else x, weights(w), None)
        y.square().sum().backward()
        return [y.detach(), leaf.grad, w.grad]

    return run(products.product), run(lambda linear, *operands: linear(*operands))


def overwritten(source: Tensor, made: Tensor) -> None:
    with torch.no_grad():
        source.zero_()


def changed(source: Tensor, made: Tensor) -> None:
    with torch.no_grad():
        made.mul_(3.0)


def changed_data(source: Tensor, made: Tensor) -> None:
    made.data = made.detach() * 3.0


@pytest.mark.parametrize("change", [
    lambda s, m: None, overwritten, changed, changed_data, lambda s, m: m[1:, ::2, :], lambda s, m: m[:, 3], lambda s, m: m[1:],
    lambda s, m: m.transpose(0, 1), lambda s, m: m.transpose(0, 1).reshape(28, 8), lambda s, m: m.view(2, 2, 7, 8),
    lambda s, m: m * 1.0, lambda s, m: m.detach(), lambda s, m: s,
    lambda s, m: m[2:3].expand(3, 7, 8),
])  # fmt: skip
def test_what_shows_a_quantized_tensor(change: Any) -> None:
    """Views of it, in any layout; and what is it no longer."""
    a, b = one(change)
    assert len(a) == len(b)
    for u, v in zip(a, b, strict=True):
        assert (u is None) == (v is None)
        assert u is None or torch.equal(u, v)


def test_a_weight_that_changes_before_the_backward_is_an_error_as_in_float() -> None:
    qat = prepared(Attention)
    y = qat(torch.randn(2, 6, 32).requires_grad_())
    with torch.no_grad():
        qat.out.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_twice_needs_retain_graph() -> None:
    qat = prepared(Attention)
    y = qat(torch.randn(2, 6, 32)).sum()
    y.backward(retain_graph=True)
    first = [p.grad.clone() for p in qat.parameters() if p.grad is not None]
    y.backward()
    assert equal([p.grad for p in qat.parameters() if p.grad is not None], [2 * g for g in first])
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_gradients_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        qat = prepared(Shared)
        torch.manual_seed(3)
        x = torch.randn(3, 6, 32).requires_grad_()
        parameters = [x, *(p for p in qat.parameters() if p.requires_grad)]
        first = torch.autograd.grad(qat(x).square().sum(), parameters, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), parameters)]

    found = run()
    unfused(monkeypatch)
    expected = run()
    count = len(found) // 2
    assert equal(found[:count], expected[:count])
    for a, b in zip(found[count:], expected[count:], strict=True):  # torch sums them in another order
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_gradients_of_a_batch_of_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Tensor:
        qat = prepared(Shared)
        torch.manual_seed(3)
        x = torch.randn(1, 2, 32).requires_grad_()
        y = qat(x)
        return torch.autograd.grad(y, x, torch.eye(16).reshape(16, 2, 8), is_grads_batched=True)[0]

    found = run()
    unfused(monkeypatch)
    assert torch.allclose(found, run(), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_tangents_are_not_lost() -> None:
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.randn(2, 4, requires_grad=True), torch.ones(2, 4))
        y = products.product(F.linear, x, torch.randn(3, 4), None)
        assert torch.autograd.forward_ad.unpack_dual(y).tangent is not None


def test_nothing_is_made_without_gradients_and_hooks_see_what_they_saw(runs: Runs) -> None:
    qat = prepared(Attention)
    runs.native = 0
    with torch.no_grad():
        qat(torch.randn(2, 6, 32))
    assert runs.native == 0
    seen: list[tuple[Tensor, Tensor]] = []
    qat.out.register_forward_hook(lambda m, args, y: seen.append((args[0], args[0].clone())))
    copied = copy.deepcopy(qat)
    copied(torch.randn(2, 6, 32)).sum().backward()
    qat(torch.randn(2, 6, 32)).sum().backward()
    assert seen
    assert all(torch.equal(a, b) for a, b in seen)
    assert runs.native == 8


def test_saved_tensors_on_the_cpu_and_a_function_mode(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            return steps(prepared(Checkpointed))

    found = run()
    unfused(monkeypatch)
    assert equal(found, run())


class Calls(torch.overrides.TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.linears = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.linears += func is F.linear
        return func(*args, **(kwargs or {}))


def test_a_function_mode_sees_linear_layers() -> None:
    qat = prepared(Attention)
    with Calls() as calls:
        qat(torch.randn(2, 6, 32))
    assert calls.linears == 4
