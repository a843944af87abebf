"""`torch.compile(fullgraph=True)`: no graph break in training or evaluation, the eager results, and the same codes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from torch._inductor.utils import run_and_get_code

import truequant as tq
from tests.models.classic import BasicBlock, conv, head
from tests.models.mobile import Inverted
from truequant import kernels
from truequant.planning import ops
from truequant.planning.ops import Op, Role, add_op


class Shared(nn.Module):
    """A module called twice, functions, and a weight used as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.weight = nn.Linear(6, 8), nn.Linear(8, 8), nn.Parameter(torch.randn(4, 8) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = self.twice(F.relu(self.twice(y))) * 0.5 + y
        return F.linear(torch.cat([y, -y], 0), self.weight)


class Flattened(nn.Module):
    """A pooling that is flattened: a quantizer reads it through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.flatten, self.classifier = conv(3, 16), nn.Flatten(), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(F.max_pool2d(self.features(x), 2)))  # type: ignore[no-any-return]


class Viewed(Flattened):
    """As above, by a method of the tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.max_pool2d(self.features(x), 2).reshape(len(x), -1))  # type: ignore[no-any-return]


class Normalized(nn.Module):
    """Norms of an image's groups, of rows, and of rows by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.group, self.layer, self.last = nn.Conv1d(3, 8, 1), nn.GroupNorm(2, 8), nn.LayerNorm(6), nn.Linear(6, 8)
        self.gain = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.layer(self.group(self.stem(x))))
        return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (lambda: nn.Sequential(conv(3, 8), BasicBlock(8, 8, 2), head(8)), (4, 3, 8, 8)),
    "inverted": (lambda: nn.Sequential(conv(3, 8), Inverted(8, 8, 1, nn.Hardswish, nn.Hardsigmoid), head(8)), (4, 3, 8, 8)),
    "shared": (Shared, (4, 6)),
    "flattened": (Flattened, (4, 3, 8, 8)),
    "viewed": (Viewed, (4, 3, 8, 8)),
    "normalized": (Normalized, (4, 3, 6)),
}


pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["w8a8", "w4a4"])
@pytest.mark.parametrize("name", MODELS)
def test_trains_and_evaluates_without_a_graph_break(name: str, preset: str) -> None:
    make, shape = MODELS[name]
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = tq.prepare(make(), torch.randn(shape), preset)
    eager(torch.randn(shape))  # ranges are there from here on
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    optimizers = [torch.optim.SGD(m.parameters(), 0.05) for m in (eager, twin)]
    for _ in range(3):
        x = torch.randn(shape)
        for model, optimizer in zip((eager, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for (key, a), b in zip(eager.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=key)
    twin.eval()
    x = torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(compiled(x), twin(x))
    assert tq.verify(twin, tq.convert(twin), [x]).codes_different == 0


@pytest.mark.slow
def test_steps_do_not_compile_again() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    qat = tq.prepare(Shared(), torch.randn(4, 6))
    qat(torch.randn(4, 6))
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(qat, backend=counter, fullgraph=True)
    for _ in range(5):
        compiled(torch.randn(4, 6)).square().mean().backward()
    assert counter.frame_count == 1


@pytest.mark.slow
def test_what_inductor_makes_runs_in_vectors() -> None:
    """No mask of booleans, no order but that of memory, no element of a channel computed again for each of its pixels."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(8, 3, 16, 16)
    qat = tq.prepare(nn.Sequential(conv(3, 16), BasicBlock(16, 16, 1), head(16)), x)
    qat(x)
    compiled = torch.compile(qat, fullgraph=True)
    _, sources = run_and_get_code(lambda: compiled(x).square().mean().backward())
    kernels = "".join(sources)
    assert "cpp_fused" in kernels
    assert not re.search(r"bool\* \w*out_ptr", kernels)
    assert "div_floor_integer" not in kernels.split("batch_norm")[1]
    for loop in re.split(r"\n    \{\n", kernels):
        bounds = [int(n) for n in re.findall(r"x\d<static_cast<int64_t>\((\d+)L\)", loop)]
        assert "convert<double" not in loop or max(bounds) <= 16, loop


@pytest.mark.slow
@pytest.mark.parametrize("make", [Flattened, Viewed])
def test_a_pooling_that_is_flattened_is_computed_once(make: Callable[[], nn.Module]) -> None:
    """Not through the index of the view, for each end of the range, codes and mask: no element is read apart from others."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    qat = tq.prepare(make(), x)
    qat(x)
    compiled = torch.compile(qat, fullgraph=True)
    _, sources = run_and_get_code(lambda: compiled(x).square().mean().backward())
    forward = sources[0]
    assert "cpp_fused" in forward
    assert "% static_cast" not in forward
    assert "div_floor_integer" not in forward


def test_an_op_registered_later_does_not_compile_again() -> None:
    """Tables of ops were read while tracing: no guard looks at them in every step."""
    torch._dynamo.reset()
    qat = tq.prepare(Shared(), torch.randn(4, 6))
    qat(torch.randn(4, 6))
    compiled = torch.compile(qat, backend="eager", fullgraph=True)
    compiled(torch.randn(4, 6))
    op = Op("registered_later", Role.FLOAT, (lambda x: x,))
    add_op(op)
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(torch.randn(4, 6))
    finally:
        del ops._BY_NAME[op.name], ops._BY_FUNCTION[op.functions[0]]


@pytest.mark.parametrize("clip", [(kernels.RELU, 0.0, 0.0), (kernels.HARDTANH, 0.0, 6.0), (kernels.CLAMP, -1.0, 2.0)])
def test_a_clip_while_compiling_is_that_of_torch(clip: kernels.Clip) -> None:
    torch._dynamo.reset()
    x = torch.cat([torch.randn(50) * 4, torch.tensor([0.0, -0.0, 6.0, -1.0, 2.0, torch.inf, -torch.inf, torch.nan])])
    g = torch.randn(len(x))
    g[:3] = torch.tensor([torch.inf, torch.nan, -0.0])
    found = []
    for run in (kernels.clipped, torch.compile(kernels.clipped, backend="aot_eager", fullgraph=True)):
        leaf = x.clone().requires_grad_()
        y = run(leaf, clip)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, g)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0, equal_nan=True)


class Lengths(nn.Module):
    """Two linear layers on any number of tokens; what lies between rounds the same compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "backend"), [("w4a16", "aot_eager"), ("w4a8-dynamic", "inductor")])
def test_weights_of_four_bits_have_the_eager_codes_at_every_length(preset: str, backend: str) -> None:
    """One graph searches for the ranges and holds them, another trains with them, a third evaluates: none is for one length."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = tq.prepare(Lengths(), torch.randn(2, 16, 64), preset, dynamic={0: (1,)})
    twin = copy.deepcopy(eager)
    made: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(twin, backend=counting, fullgraph=True, dynamic=True)
    compiles: list[bool] = []

    def run(x: Tensor) -> Tensor:
        before = len(made)
        y: Tensor = compiled(x)
        compiles.append(len(made) > before)
        return y

    def evaluated() -> None:
        compiles.clear()
        with torch.no_grad():
            for length in (9, 24, 31):
                x = torch.randn(2, length, 64)
                assert torch.equal(run(x), eager.eval()(x))
                assert torch.equal(tq.convert(twin)(x), eager(x))
        assert compiles == [True, False, False]

    twin.eval()
    evaluated()  # ranges are those of the weights as they stand
    compiles.clear()
    optimizers = [torch.optim.SGD(m.parameters(), 0.05) for m in (eager, twin)]
    for length in (16, 24, 33, 40):
        x = torch.randn(2, length, 64)
        for model, forward, optimizer in zip((eager, twin), (eager, run), optimizers, strict=True):
            model.train()
            optimizer.zero_grad()
            forward(x).square().mean().backward()
            optimizer.step()
        for name in ("up", "down"):
            ours: Any = eager.get_submodule(name)
            other: Any = twin.get_submodule(name)
            assert torch.equal(ours.quantizers["weight"].scale, other.quantizers["weight"].scale)
            assert not other.quantizers["weight"].follows_weight()
        twin.load_state_dict(eager.state_dict())  # sums of products of other sizes may round differently
    assert compiles == [True, True, False, False]
    twin.eval()
    evaluated()
