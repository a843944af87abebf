"""Compiled fake quantization with learned scales and offsets, binary codes and scales of channels: the reference's bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from tests.unit.kernels.levels import LENGTHS, LEVELS, awkward, on_each, same
from truequant import kernels
from truequant.fake import FakeQuantize, WeightQuantizer
from truequant.kernels import reference
from truequant.schemes import LSQ, LSQPlus, PerChannel, PerGroup, QuantScheme, int1, int4, int8, uint4, uint8

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "every second": lambda x: x[:, ::2, 1:],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}
RULES = ["learned", "offset", "binary", "straight through"]


def call(rule: str, x: Tensor, scale: Tensor, second: Tensor, **more: Any) -> Tensor:
    """One of the functions of `kernels`; `second` holds zero points, or offsets."""
    match rule:
        case "learned":
            return kernels.fake_quantize_learned(x, scale, second, 0, 255, factor=0.5, **more)
        case "offset":
            return kernels.fake_quantize_offset(x, scale, second, 0, 255, **more)
        case "binary":
            return kernels.fake_binarize(x, scale, factor=0.25)
        case _:
            return kernels.fake_quantize(x, scale.detach(), second, 0, 255)


def gradients(rule: str, x: Tensor, scale: Tensor, second: Tensor, **more: Any) -> list[Tensor]:
    """The result, and gradients of all that is trained; the gradient given is awkward itself, but finite."""
    leaves = [v.detach().requires_grad_() for v in (x, scale)]
    trained = [*leaves, second.detach().requires_grad_()] if rule == "offset" else leaves
    y = call(rule, *leaves, trained[2] if rule == "offset" else second, **more)
    g = torch.randn(y.shape).to(y.dtype) if more.get("finite", True) else awkward(y.numel()).to(y.dtype).reshape(y.shape)
    wanted = trained[:1] if rule == "straight through" else trained
    return [y.detach(), *torch.autograd.grad(y, wanted, g)]


def assert_same(level: str, run: Callable[[], list[Tensor]]) -> None:
    expected, got = on_each(level, run)
    for k, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert same(a, b), f"value {k}: {a} {b}"


def scales(shape: tuple[int, ...], rule: str) -> tuple[Tensor, Tensor]:
    scale = torch.rand(shape) * 0.2 + 0.01
    return scale, -torch.rand(shape) * 3 if rule == "offset" else torch.randint(0, 200, shape).float()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_every_length_and_awkward_values(level: str, dtype: torch.dtype, rule: str) -> None:
    def run() -> list[Tensor]:
        found = []
        for n in LENGTHS:
            found += gradients(rule, awkward(n, 0.1, dtype), *scales((), rule))
            finite = torch.nan_to_num(awkward(n, 0.1), 0.0, 9.0, -9.0).clamp(-1e4, 1e4)
            found += gradients(rule, finite.to(dtype), torch.tensor(0.1), *scales((), rule)[1:])
        return found

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [None, 0, 1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_layouts_and_axes(level: str, layout: str, axis: int | None, rule: str) -> None:
    def run() -> list[Tensor]:
        found = []
        for size in ((3, 8, 5, 7), (3, 40, 9, 33)):
            x = LAYOUTS[layout](torch.randn(size) * 9)
            shape = () if axis is None else tuple(n if k == axis else 1 for k, n in enumerate(x.shape))
            found += gradients(rule, x, *scales(shape, rule))
        return found

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("clip", [(kernels.RELU, 0.0, 0.0), (kernels.HARDTANH, 0.0, 6.0), (kernels.CLAMP, -1.0, 2.0)])
@pytest.mark.parametrize("rule", ["learned", "offset"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_clips(level: str, clip: kernels.Clip, rule: str, dtype: torch.dtype) -> None:
    def run() -> list[Tensor]:
        x = torch.cat([torch.randn(5000) * 9, torch.tensor([0.0, -0.0, 6.0, 2.0, -1.0, math.inf, -math.inf])]).to(dtype)
        return gradients(rule, x, *scales((), rule), clip=clip)

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rule", ["learned", "offset", "binary"])
def test_values_and_scales_of_every_size(level: str, rule: str) -> None:
    """Quotients that products give, and those that overflow, underflow or lie at the smallest numbers on the way."""

    def run() -> list[Tensor]:
        exponent = torch.arange(-64, 65).float().repeat_interleave(16).unsqueeze(1)
        scale = torch.ldexp(torch.rand(exponent.shape) + 1, exponent).clamp(2.0**-64, 2.0**64)
        steps = torch.ldexp(torch.randn(len(exponent), 16), torch.randint(-90, 70, (len(exponent), 16)))
        steps[::2] = torch.randint(-10, 600, steps[::2].shape) / 2 * (1 + torch.randint(-2, 3, steps[::2].shape) * 2.0**-23)
        x = steps * scale
        x[::2, 0] = torch.ldexp(torch.randn(len(x[::2])), torch.randint(-149, -90, (len(x[::2]),)))
        x[:, 1:] = torch.where(torch.arange(len(x)).unsqueeze(1) % 8 < 6, 0.0, x[:, 1:])  # one alone is not lost in a sum
        return gradients(rule, x.clamp(-3e38, 3e38), scale, scales(tuple(scale.shape), rule)[1])

    for _ in range(4):
        assert_same(level, run)


@pytest.mark.alone
@pytest.mark.parametrize("level", LEVELS)
def test_threads_do_not_matter(level: str) -> None:
    x, before, found = torch.randn(300_001) * 9, torch.get_num_threads(), []
    images = (torch.randn(4, 32, 40, 40) * 9).to(memory_format=torch.channels_last)
    try:
        with kernels.using(level):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                torch.manual_seed(0)
                found.append(
                    gradients("offset", x, *scales((), "offset")) + gradients("learned", images, *scales((32, 1, 1), ""))
                )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(same(a, b) for a, b in zip(found[0], other, strict=True))


def test_the_sum_is_that_of_fractions() -> None:
    """The gradient of a scale is the float32 nearest to the exact sum of its float32 terms (to within float64's rounding)."""
    x, g = torch.randn(5000) * 9, torch.randn(5000)
    scale, zero = torch.tensor(0.1), torch.tensor(7.0)
    leaf = scale.clone().requires_grad_()
    kernels.fake_quantize_learned(x, leaf, zero, 0, 255).backward(g)
    steps = x / scale
    inside = (steps + zero > 0) & (steps + zero < 255)
    codes = torch.clamp(torch.round(steps) + zero, 0, 255) - zero
    terms = g * torch.where(inside, codes - steps, codes)
    assert leaf.grad is not None
    exact = sum((Fraction(t) for t in terms.tolist()), Fraction(0))
    assert leaf.grad.item() == torch.tensor(float(exact), dtype=torch.float64).float().item()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", [500, 5000, 70_000])
@pytest.mark.parametrize("shape", [(), (5, 1), (5,)])
def test_the_order_of_the_sum(level: str, n: int, shape: tuple[int, ...]) -> None:
    """Terms of all sizes that cancel: what is left are rounding errors, which no other order makes."""

    def run() -> list[Tensor]:
        half, g = torch.randn(n // 2) * 9, torch.randn(n // 2) * 2.0 ** torch.randint(-50, 50, (n // 2,))
        order = torch.randperm(n // 2)
        x, g = torch.cat([half, half[order]]), torch.cat([g, -g[order]])
        x, g = (v.reshape(5, -1) if shape == (5, 1) else v.reshape(-1, 5) for v in (x, g))
        found = []
        for rule in ("learned", "offset"):
            scale, second = torch.full(shape, 0.1).requires_grad_(), torch.full(shape, 3.0).requires_grad_()
            call(rule, x, scale, second).backward(g)
            found += [v.grad for v in (scale, second) if v.grad is not None]
        assert any(bool((v != 0).any()) for v in found)
        return found

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
def test_by_hand(level: str) -> None:
    with kernels.using(level):
        x = torch.tensor([0.5, 1.5, -1.0, 20.0, 15.0], requires_grad=True)
        scale = torch.tensor(1.0, requires_grad=True)
        y = kernels.fake_quantize_learned(x, scale, torch.tensor(0.0), 0, 15)
        y.sum().backward()
    assert y.tolist() == [0.0, 2.0, 0.0, 15.0, 15.0]
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert scale.grad is not None
    assert scale.grad.item() == -0.5 + 0.5 + 0.0 + 15.0 + 15.0


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_kernel_cannot_read_takes_the_reference(level: str) -> None:
    with kernels.using(level):
        scale, zero = torch.tensor(0.1, requires_grad=True), torch.tensor(0.0)
        assert kernels.fake_quantize_learned(torch.randn(4, dtype=torch.float64), scale, zero, 0, 15).dtype == torch.float64
        empty = torch.empty(0, 3, requires_grad=True)
        kernels.fake_quantize_learned(empty, scale, zero, 0, 15).sum().backward()
        assert empty.grad is not None
        assert empty.grad.shape == (0, 3)
        assert scale.grad is not None
        assert scale.grad.item() == 0.0
        many = torch.full((4, 3), 0.1, requires_grad=True)  # a scale for each element
        kernels.fake_quantize_learned(torch.randn(4, 3), many, torch.zeros(4, 3), 0, 15).sum().backward()
        with pytest.raises(RuntimeError, match="size of tensor"):
            kernels.fake_quantize_learned(torch.randn(4, 3), torch.ones(5), torch.zeros(5), 0, 15)
        meta = kernels.fake_quantize_learned(torch.empty(3, device="meta"), scale.to("meta"), zero.to("meta"), 0, 15)
        assert meta.shape == (3,)


@pytest.mark.parametrize("level", [*LEVELS, "reference"])
@pytest.mark.parametrize("rule", ["learned", "offset", "binary"])
def test_several_gradients_at_once_and_none_of_gradients(level: str, rule: str) -> None:
    with kernels.using(level):
        x, (scale, second) = torch.randn(6).requires_grad_(), scales((), rule)
        scale.requires_grad_()
        y = call(rule, x, scale, second)
        rows, slopes = torch.autograd.grad(y, [x, scale], torch.eye(6), is_grads_batched=True, retain_graph=True)
        for k in range(6):
            one = torch.autograd.grad(y, [x, scale], torch.eye(6)[k], retain_graph=True)
            assert torch.equal(rows[k], one[0])
            assert torch.equal(slopes[k], one[1])
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate"):
            torch.autograd.grad(g.sum(), x)


ACTIVATIONS: list[tuple[QuantScheme, Any]] = [
    (QuantScheme(uint4, scale=LSQ()), None), (QuantScheme(uint4, scale=LSQPlus()), None),
    (QuantScheme(uint8, PerChannel(1)), 8), (QuantScheme(int8, PerChannel(1), gradient="identity"), 8),
    (QuantScheme(uint4, PerChannel(1), scale=LSQ()), 8), (QuantScheme(uint4, PerChannel(1), scale=LSQPlus()), 8),
]  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", range(len(ACTIVATIONS)), ids=[str(s) for s, _ in ACTIVATIONS])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantizers_of_activations(level: str, case: int, last: bool, dtype: torch.dtype) -> None:
    """Outputs, gradients and state of several steps, NaN and infinities among the values of one."""

    def run() -> list[Tensor]:
        quantizer, found = FakeQuantize(*ACTIVATIONS[case]), []
        for step in range(4):
            x = torch.randn(3, 8, 5, 7) * (step + 1)
            if step == 2:
                x.view(-1)[[3, 99, 500]] = torch.tensor([math.nan, math.inf, -math.inf])
            x = (x.to(memory_format=torch.channels_last) if last else x).to(dtype).requires_grad_()
            y = quantizer(x)
            y.backward(torch.randn(y.shape).to(dtype))
            found += [y.detach(), x.grad, *(v.detach().clone().double().reshape(-1) for v in quantizer.state_dict().values())]
            for p in quantizer.parameters():
                assert p.grad is not None
                found.append(p.grad.clone().reshape(-1))
                with torch.no_grad():
                    p -= 0.01 * torch.nan_to_num(p.grad)
                p.grad = None
        return found

    assert_same(level, run)


WEIGHTS: list[tuple[QuantScheme, Any, bool]] = [
    (QuantScheme(int4, PerChannel(0), scale=LSQ()), 6, False), (QuantScheme(int4, scale=LSQ()), None, False),
    (QuantScheme(int4, PerGroup(9), scale=LSQ()), (6, 4), False), (QuantScheme(int1, PerChannel(0)), 6, False),
    (QuantScheme(int1, PerChannel(0), scale=LSQ()), 6, False), (QuantScheme(int1), None, False),
    (QuantScheme(int8), None, True),
    (QuantScheme(int4, PerChannel(0), scale=LSQ()), 6, True),
]  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", range(len(WEIGHTS)), ids=[f"{s}{', tied' * t}" for s, _, t in WEIGHTS])
def test_quantizers_of_weights(level: str, case: int) -> None:
    scheme, channels, tied = WEIGHTS[case]

    def run() -> list[Tensor]:
        quantizer, found = WeightQuantizer(scheme, channels, tied=tied), []
        factor = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64) if tied else None
        for layout in ("contiguous", "channels last"):
            w = nn.Parameter(LAYOUTS[layout](torch.randn(6, 4, 3, 3)))
            quantizer.initialize(w.detach(), factor)
            y = quantizer(w, factor)
            y.backward(torch.randn(y.shape))
            found += [y.detach(), w.grad, *(p.grad.clone().reshape(-1) for p in quantizer.parameters() if p.grad is not None)]
        return found

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("preset", ["w4a4", "w2a2", "w1a1"])
def test_a_model_trains_to_the_same_bits(level: str, preset: str) -> None:
    """Clips in one pass with a learned scale, in a model whose layers have no BatchNorm."""

    def run() -> list[Tensor]:
        layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Flatten()]
        qat = tq.prepare(nn.Sequential(*layers, nn.Linear(64, 5)), torch.randn(2, 3, 8, 8), preset)
        optimizer = torch.optim.SGD(qat.parameters(), 0.05, 0.9)
        for _ in range(4):
            optimizer.zero_grad()
            qat(torch.randn(6, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        return [v.detach().double().reshape(-1) for v in qat.state_dict().values()]

    assert_same(level, run)


def test_a_clip_and_a_learned_scale_are_one_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    qat = tq.prepare(model, torch.randn(2, 4), "w4a4")
    qat(torch.randn(5, 4))
    names, waiting = set(), [qat(torch.randn(5, 4)).grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.add(node.name())
            waiting += [n for n, _ in node.next_functions]
    assert ("LearnedFakeQuantizeBackward" in names) == (kernels.level() != "reference")
    assert "ReluBackward0" not in names or kernels.level() == "reference"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiling_sums_in_any_order() -> None:
    """What the module of the reference says of compiled code: the same to within rounding."""
    x, g = torch.randn(1000) * 9, torch.randn(1000)
    found = []
    for function in (reference.fake_quantize_learned, torch.compile(reference.fake_quantize_learned, backend="aot_eager")):
        scale = torch.tensor(0.1, requires_grad=True)
        function(x, scale, torch.tensor(0.0), 0, 255, factor=1.0).backward(g)
        assert scale.grad is not None
        found.append(scale.grad.item())
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_at_the_ends_of_a_grid(level: str) -> None:
    """Steps and zero point are added in floats: what lies next to an end may be rounded to it."""

    def run() -> list[Tensor]:
        found = []
        for zero in (0.0, 1.0, 100.0, 128.0, 155.0, 254.0, 255.0):
            ends = torch.tensor([0.0 - zero, 255.0 - zero])
            near = [ends]
            for way in (-math.inf, math.inf):
                x = ends
                for _ in range(9):
                    x = torch.nextafter(x, torch.tensor(way))
                    near.append(x)
            x = torch.cat(near).repeat(8)[:128]  # whole strides
            found += gradients("learned", x, torch.tensor(1.0), torch.tensor(zero))
        return found

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_of_nothing_but_denormals(level: str) -> None:
    """Their quotients are divided: no product has all bits of what is left over."""

    def run() -> list[Tensor]:
        scales = torch.rand(20) * 0.01
        return [v for scale in scales for v in gradients("learned", torch.randn(256) * 1e-41, scale, torch.tensor(0.0))]

    assert_same(level, run)
