"""Compiled fake quantization of activations: every level gives the reference's bits, forward, backward and in its state."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from tests.unit.kernels.levels import LENGTHS, LEVELS, awkward, on_each, same
from truequant import kernels
from truequant.fake import FakeQuantize
from truequant.schemes import (
    IntegerType,
    MinMax,
    MovingAverage,
    PowerOfTwoScale,
    QuantScheme,
    int1,
    int8,
    uint2,
    uint4,
    uint8,
)  # fmt: skip
from truequant.schemes.scheme import Gradient

SCHEMES = [
    QuantScheme(uint8), QuantScheme(uint8, symmetric=True), QuantScheme(int8), QuantScheme(int8, symmetric=False),
    QuantScheme(uint4, gradient="identity"), QuantScheme(uint2, observer=MinMax()), QuantScheme(int1),
    QuantScheme(uint8, scale=PowerOfTwoScale()), QuantScheme(uint8, observer=MovingAverage(0.3)),
]  # fmt: skip
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3),
    "every second": lambda x: x[:, ::2, 1:],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}


def steps(scheme: QuantScheme, batches: list[Tensor], *, gradients: bool = True) -> list[Tensor]:
    """Outputs, gradients and the whole state of several steps."""
    quantizer = FakeQuantize(scheme)
    found = []
    for batch in batches:
        x = batch.clone().requires_grad_(gradients) if batch.is_contiguous() else batch.detach().requires_grad_(gradients)
        y = quantizer(x)
        found.append(y.detach())
        if gradients:
            found.append(torch.autograd.grad(y, x, awkward(y.numel()).to(y.dtype).reshape(y.shape))[0])
        found += [v.clone().reshape(-1).double() for v in quantizer.state_dict().values()]
    return found


def assert_same(level: str, run: Callable[[], list[Tensor]]) -> None:
    expected, got = on_each(level, run)
    for k, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert same(a, b), f"value {k}: {a} {b}"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_several_steps(level: str, dtype: torch.dtype, scheme: QuantScheme) -> None:
    assert_same(level, lambda: steps(scheme, [torch.randn(3, 501).to(dtype) * (k + 1) for k in range(4)]))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_length_and_awkward_values(level: str, dtype: torch.dtype) -> None:
    def run() -> list[Tensor]:
        return [v for n in LENGTHS for v in steps(QuantScheme(uint8), [torch.randn(50).to(dtype), awkward(n, 0.1, dtype)] * 2)]

    assert_same(level, run)


def many(dtype: torch.dtype) -> list[Tensor]:
    """More elements than a kernel looks at one by one: of both signs, of one, with what is not finite in some blocks."""
    x = torch.randn(7 * 2048 + 4096 + 77)
    broken = x.clone()
    broken[[100, 5000, 9000]] = torch.tensor([math.nan, -math.nan, -math.inf])
    size = x.abs()
    batches = [x, 3 * x, size + 0.5, -size - 0.5, broken, size - 0.1, x, -broken.abs(), 0.01 * x, size * 0, size * 5]
    return [batch.to(dtype) for batch in batches]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "scheme",
    [QuantScheme(uint8), QuantScheme(int8), QuantScheme(uint2), QuantScheme(uint8, gradient="identity"),
     QuantScheme(uint8, observer=MinMax())],
    ids=str,
)  # fmt: skip
def test_many_two_byte_floats(level: str, dtype: torch.dtype, scheme: QuantScheme) -> None:
    assert_same(level, lambda: steps(scheme, many(dtype)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradient", ["clipped", "identity"])
def test_many_two_byte_floats_behind_a_relu(level: str, dtype: torch.dtype, gradient: Gradient) -> None:
    """In one pass with it, as training runs them."""
    config = tq.QConfig(activation=QuantScheme(uint8, gradient=gradient))

    def run() -> list[Tensor]:
        found = []
        model = tq.prepare(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()).to(dtype), torch.zeros(1, 1, 4, 4, dtype=dtype), config)
        for batch in many(dtype):
            x = batch.reshape(1, 1, 1, -1).clone().requires_grad_()
            y = model(x)
            found += [y.detach(), torch.autograd.grad(y, x, awkward(y.numel()).to(dtype).reshape(y.shape))[0]]
            found += [v.clone().reshape(-1).double() for v in model.state_dict().values()]
        return found

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(level: str, layout: str) -> None:
    def run() -> list[Tensor]:
        batches = [LAYOUTS[layout](torch.randn(3, 8, 5, 7)) for _ in range(3)]
        return steps(QuantScheme(uint8), batches)

    assert_same(level, run)
    x = LAYOUTS[layout](torch.randn(3, 8, 5, 7))
    with kernels.using(level):
        assert FakeQuantize(QuantScheme(uint8))(x).stride() == torch.sin(x).stride()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_observed(level: str, value: float) -> None:
    batches = [torch.randn(100), torch.cat([torch.randn(70), torch.tensor([value])]), torch.full((20,), value), torch.randn(9)]
    assert_same(level, lambda: steps(QuantScheme(uint8), batches))


@pytest.mark.parametrize("level", LEVELS)
def test_ties_by_hand(level: str) -> None:
    """Expected values that no other code computed."""
    quantizer = FakeQuantize(QuantScheme(int8))
    quantizer(torch.tensor([127.0, -127.0]))
    with kernels.using(level):
        x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 200.0], requires_grad=True)
        y = quantizer(x)
        y.sum().backward()
    assert y.tolist() == [0.0, 2.0, 2.0, 0.0, -2.0, 126.0, 127.0, 127.0]
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.alone
@pytest.mark.parametrize("level", LEVELS)
def test_threads_do_not_matter(level: str) -> None:
    x, first, before = torch.randn(300_000), torch.randn(10), torch.get_num_threads()
    results = []
    try:
        with kernels.using(level):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(steps(QuantScheme(uint8), [first, x, x * 2], gradients=False))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(same(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [uint8, int8])
def test_the_gradient_can_be_differentiated_again(dtype: IntegerType) -> None:
    def run() -> list[Tensor]:
        quantizer = FakeQuantize(QuantScheme(dtype))
        quantizer(torch.randn(100) / 2)
        x = torch.randn(100, requires_grad=True)
        (g,) = torch.autograd.grad(quantizer(x).square().sum(), x, create_graph=True)
        return [g.detach(), torch.autograd.grad(g.square().sum(), x)[0]]

    for level in LEVELS:
        assert_same(level, run)


def test_a_mask_is_all_that_is_kept() -> None:
    quantizer = FakeQuantize(QuantScheme(uint8))
    quantizer(torch.randn(1000))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        quantizer(torch.randn(1000, requires_grad=True))
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.uint8, 125)]


def test_what_a_kernel_cannot_read_takes_the_reference() -> None:
    quantizer = FakeQuantize(QuantScheme(uint8))
    quantizer(torch.randn(100))
    assert quantizer(torch.randn(4, dtype=torch.float64)).dtype == torch.float64
    x = torch.randn(5, 4)
    assert torch.equal(torch.vmap(quantizer.eval())(x), quantizer(x))


def test_gradients_by_vmap() -> None:
    """Several backward passes at once, as `torch.autograd.functional.jacobian(vectorize=True)` makes them."""
    quantizer = FakeQuantize(QuantScheme(uint8))
    quantizer(torch.tensor([-1.0, 1.0]))
    x = torch.tensor([0.3, 5.0, -0.2], requires_grad=True)
    y = quantizer(x)
    (rows,) = torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True)
    assert rows.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("top", [255, 65535])
def test_around_every_tie(level: str, top: int) -> None:
    """Where a product with 1 / scale could round to another code than the quotient: at half an integer and one float beside."""

    def run() -> list[Tensor]:
        found = []
        for _ in range(40):
            scale, zero = torch.rand(()) + 0.01, torch.randint(0, top, ()).float()
            middle = (torch.arange(-300, 300) + 0.5) * scale
            up, down = torch.tensor(math.inf), torch.tensor(-math.inf)
            x = torch.cat([middle, torch.nextafter(middle, up), torch.nextafter(middle, down)])
            found.append(kernels.fake_quantize(x, scale, zero, 0, top))
        return found

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_two_byte_floats(level: str, dtype: torch.dtype) -> None:
    """Of a tensor of many two-byte floats a kernel asks once what could go wrong: with quotients near half an integer, with
    products in the middle of two such floats, whose scale is the last one here.
    """
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    tied = torch.tensor([0x3D008000], dtype=torch.int32).view(torch.float32)[0]

    def run() -> list[Tensor]:
        found = []
        for scale in (*(torch.rand(120) + 0.01), torch.tensor(0.0625), tied):
            zero = torch.randint(0, 255, ()).float()
            x = every.clone().requires_grad_()
            y = kernels.fake_quantize(x, scale, zero, 0, 255)
            found += [y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]]
        return found

    assert_same(level, run)
