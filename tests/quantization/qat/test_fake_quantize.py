"""Area 1: `FakeQuantize` puts values on a grid, lets gradients through, and follows the data between steps."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from truequant import FakeQuantize
from truequant.errors import ArgumentError, CalibrationError
from truequant.schemes import IntegerType, PerChannel, PerGroup, QuantScheme, int4, int8, integer_type, uint4, uint8


def on_grid(
    scheme: QuantScheme, scale: float | Tensor, zero_point: float | Tensor = 0.0, channels: int | None = None
) -> FakeQuantize:
    """A quantizer with a given grid that observes nothing."""
    quantizer = FakeQuantize(scheme, channels)
    state = quantizer.state_dict()
    state["scale"] = torch.as_tensor(scale, dtype=torch.float32).expand(state["scale"].shape).clone()
    state["zero_point"] = torch.as_tensor(zero_point, dtype=torch.float32).expand(state["zero_point"].shape).clone()
    state["calibrated"] = torch.tensor(True)
    quantizer.load_state_dict(state)
    quantizer.observing = False
    return quantizer


def oracle(x: float, scale: float, zero_point: int, qmin: int, qmax: int) -> float:
    """The affine formula in exact fractions where float32 rounding cannot matter: scales that are powers of two."""
    quotient = Fraction(x) / Fraction(scale)
    code = min(max(round(quotient) + zero_point, qmin), qmax)  # Python rounds halves to even
    return float((code - zero_point) * Fraction(scale))


# -- values ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [uint8, int8, uint4, int4])
@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0**-10])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_forward_is_the_affine_formula(dtype: IntegerType, scale: float, mode: str) -> None:
    zero_point = 0 if dtype.signed else dtype.qmax // 3
    quantizer = on_grid(QuantScheme(dtype), scale, zero_point)
    quantizer.train(mode == "train")
    scheme = quantizer.scheme
    points = [k * scale / 4 for k in range(-1200, 1201)]  # every quarter step: ties, saturation and zero among them
    expected = [oracle(p, scale, zero_point, scheme.qmin, scheme.qmax) for p in points]
    assert quantizer(torch.tensor(points)).tolist() == expected


def test_ties_go_to_even() -> None:
    quantizer = on_grid(QuantScheme(int8), 1.0)
    assert quantizer(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])).tolist() == [0.0, 2.0, 2.0, 0.0, -2.0, -2.0]


def test_division_is_true_division() -> None:
    """x * (1 / s) would put this value on another code."""
    s, x = torch.tensor(0.1), torch.tensor(0.1) * 2.5
    code = torch.round(x / s)
    found = [v for v in torch.linspace(0, 25.4, 200001) if torch.round(v / s) != torch.round(v * (1 / s))]
    assert found, "no value tells the two apart"
    quantizer = on_grid(QuantScheme(uint8), 0.1)
    assert quantizer(x) == code * s
    assert all(quantizer(v) == torch.round(v / s) * s for v in found[:20])


@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
def test_zero_saturation_and_infinities(zero_point: int) -> None:
    quantizer = on_grid(QuantScheme(uint8), 0.5, zero_point)
    low, high = (0 - zero_point) * 0.5, (255 - zero_point) * 0.5
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e30, -1e30])
    assert quantizer(x).tolist() == [0.0, 0.0, high, low, high, low]


def test_nan_shows_in_training_and_is_code_zero_in_evaluation() -> None:
    quantizer = on_grid(QuantScheme(uint8), 0.5, 100)
    assert math.isnan(quantizer(torch.tensor(math.nan)))
    assert quantizer.eval()(torch.tensor(math.nan)) == -50.0


def test_noise_is_there_and_bounded_by_half_a_step() -> None:
    torch.manual_seed(0)
    quantizer = on_grid(QuantScheme(int8), 0.01)
    x = torch.empty(10_000).uniform_(-1.27, 1.27)
    error = (quantizer(x) - x).abs()
    assert float((error > 0).float().mean()) > 0.99
    assert float(error.max()) <= 0.005 + 1e-7


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_signal_to_noise_is_six_decibels_a_bit(bits: int) -> None:
    """A uniform signal over the whole range: 10 log10(levels^2 - 1), near 6.02 dB a bit."""
    torch.manual_seed(bits)
    dtype = integer_type(f"uint{bits}")
    levels = dtype.qmax + 1
    quantizer = on_grid(QuantScheme(dtype), 1.0)
    x = torch.empty(400_000).uniform_(-0.5, levels - 0.5)
    signal, noise = (x - x.mean()).square().mean(), (quantizer(x) - x).square().mean()
    assert float(10 * torch.log10(signal / noise)) == pytest.approx(6.0206 * bits, abs=0.1)


def test_fixed_points_and_idempotence() -> None:
    quantizer = on_grid(QuantScheme(uint8), 0.037, 91)
    grid = (torch.arange(256) - 91) * torch.tensor(0.037)
    assert torch.equal(quantizer(grid), grid)
    x = torch.randn(1000)
    assert torch.equal(quantizer(quantizer(x)), quantizer(x))


# -- gradients -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("gradient", ["clipped", "identity"])
def test_straight_through_gradient(gradient: str) -> None:
    """Exactly the upstream gradient where the rounded code fits, exactly zero (or the same, if asked) where it does not."""
    quantizer = on_grid(QuantScheme(uint8, gradient=gradient), 1.0, 10)  # type: ignore[arg-type]
    x = torch.tensor([-11.0, -10.51, -10.5, -10.49, 0.0, 245.4, 245.5, 245.51, 300.0], requires_grad=True)
    upstream = torch.arange(1.0, 10.0)
    quantizer(x).backward(upstream)
    inside = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0, 0]).bool()  # -10.5 rounds to -10 and stays, 245.5 to 246 and leaves
    assert x.grad is not None
    assert torch.equal(x.grad, upstream if gradient == "identity" else torch.where(inside, upstream, 0.0))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradient_is_the_same_in_both_modes(mode: str) -> None:
    quantizer = on_grid(QuantScheme(int8), 0.1)
    quantizer.train(mode == "train")
    x = torch.linspace(-20, 20, 101, requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, (torch.round(x.detach() / 0.1).abs() <= 127).float())


# -- switches --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("observing", [False, True])
@pytest.mark.parametrize("quantizing", [False, True])
def test_switches_are_independent(observing: bool, quantizing: bool) -> None:
    quantizer = FakeQuantize(QuantScheme(uint8))
    quantizer(torch.tensor([0.0, 2.55]))
    quantizer.observing, quantizer.quantizing = observing, quantizing
    before = quantizer.observer.pending_maximum.clone()
    x = torch.tensor([0.123, 9.9])
    y = quantizer(x)
    assert torch.equal(y, x) is not quantizing
    assert bool((quantizer.observer.pending_maximum != before).any()) is observing


def test_disabled_means_bit_identity_in_value_and_gradient() -> None:
    quantizer = FakeQuantize(QuantScheme(uint8))
    quantizer.observing = quantizer.quantizing = False
    x = torch.tensor([math.pi, -0.0, 1e-40, math.inf], requires_grad=True)
    y = quantizer(x)
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(y.detach().view(torch.int32), x.detach().view(torch.int32))
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_quantizing_with_a_range_never_seen_is_an_error() -> None:
    quantizer = FakeQuantize(QuantScheme(uint8)).eval()
    quantizer.name = "features.3.output"
    with pytest.raises(CalibrationError, match="'features.3.output' has no range: it has observed nothing yet"):
        quantizer(torch.ones(3))


# -- the range follows the data, between steps -----------------------------------------------------------------------------
def test_first_batch_sets_the_range_and_later_ones_wait_for_the_next_step() -> None:
    quantizer = FakeQuantize(QuantScheme(uint8))
    quantizer(torch.tensor([0.0, 255.0]))
    assert quantizer.scale == 1.0
    assert quantizer(torch.tensor([0.0, 510.0])).max() == 255.0  # seen, not yet in force
    quantizer(torch.tensor([0.0]))  # the next step: 0.9 * 255 + 0.1 * 510
    assert float(quantizer.scale) == pytest.approx((0.9 * 255 + 0.1 * 510) / 255)


def test_evaluation_writes_nothing() -> None:
    quantizer = FakeQuantize(QuantScheme(uint8))
    quantizer(torch.rand(100))
    quantizer.eval()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer(100 * torch.randn(100))
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


# -- dtypes, shapes, memory ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    """Computed in float32, returned in the dtype that came; the state stays float32 whatever `.to` says."""
    quantizer = on_grid(QuantScheme(int8), 0.1).to(dtype)
    assert quantizer.scale.dtype == quantizer.zero_point.dtype == torch.float32
    x = torch.linspace(-15, 15, 333).to(dtype).requires_grad_()
    y = quantizer(x)
    expected = (torch.clamp(torch.round(x.detach().float() / 0.1), -127, 127) * torch.tensor(0.1)).to(dtype)
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_autocast_does_not_touch_the_arithmetic() -> None:
    quantizer = on_grid(QuantScheme(int8), 0.1)
    x = torch.randn(100)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(x), quantizer(x.clone()))
        found = quantizer(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, quantizer(x))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4, 5)])
def test_shapes(shape: tuple[int, ...]) -> None:
    quantizer = on_grid(QuantScheme(int8), 0.1)
    x = torch.randn(shape)
    assert torch.equal(quantizer(x), torch.clamp(torch.round(x / 0.1), -127, 127) * torch.tensor(0.1))


def test_an_empty_batch_observes_nothing() -> None:
    quantizer = FakeQuantize(QuantScheme(uint8))
    with pytest.raises(CalibrationError):
        quantizer(torch.empty(0, 3))
    quantizer(torch.rand(4))
    scale = quantizer.scale.clone()
    quantizer(torch.empty(0, 3))
    quantizer(torch.empty(0, 3))
    assert torch.isfinite(quantizer.scale)
    assert torch.equal(quantizer.scale, scale)


def test_strides_and_memory_format() -> None:
    quantizer = on_grid(QuantScheme(int8), 0.1)
    x = torch.randn(2, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(quantizer(last), quantizer(x))
    assert quantizer(last).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(quantizer(x.transpose(1, 3)), quantizer(x).transpose(1, 3))
    assert torch.equal(quantizer(x[:, ::2]), quantizer(x)[:, ::2])


# -- granularity -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_per_channel_on_any_axis(axis: int) -> None:
    x = torch.randn(3, 4, 5)
    n = x.shape[axis]
    scale = torch.arange(1, n + 1) / 50
    quantizer = on_grid(QuantScheme(int8, PerChannel(axis)), scale, channels=n)
    for i in range(n):
        alone = on_grid(QuantScheme(int8), float(scale[i]))
        assert torch.equal(quantizer(x).select(axis, i), alone(x.select(axis, i)))


def test_per_channel_ranges_follow_their_channels() -> None:
    quantizer = FakeQuantize(QuantScheme(int8, PerChannel(1)), channels=2)
    quantizer(torch.stack([torch.tensor([-1.27, 1.0]), torch.tensor([12.7, 0.0])], 1))
    assert quantizer.scale.tolist() == pytest.approx([0.01, 0.1])


def test_per_group() -> None:
    x = torch.tensor([[1.27, 0.0, 12.7, 1.0, 127.0], [2.54, 1.0, 0.0, 0.0, -1.27]])
    quantizer = FakeQuantize(QuantScheme(int8, PerGroup(2)), channels=(2, 3))
    quantizer(x)
    assert torch.allclose(quantizer.scale, torch.tensor([[0.01, 0.1, 1.0], [0.02, 2.0**-64, 0.01]]))
    assert torch.equal(quantizer(x)[0, :2], on_grid(QuantScheme(int8), 0.01)(x[0, :2]))


def test_the_number_of_channels_must_be_known() -> None:
    with pytest.raises(ArgumentError, match=r"PerChannel\(axis=1\) needs to know how many scales there are"):
        FakeQuantize(QuantScheme(int8, PerChannel(1)))


# -- recomputation ---------------------------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(8, 8), how
        self.quantizer = FakeQuantize(QuantScheme(uint8))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "plain":
            return self.inner(x)
        result: Tensor = checkpoint(self.inner, x, use_reentrant=self.how == "reentrant")
        return result

    def inner(self, x: Tensor) -> Tensor:
        return self.quantizer(self.linear(x).tanh())


def train(how: str, schedule: str) -> list[Tensor]:
    """Two steps; gradients after each and the final scales."""
    torch.manual_seed(0)
    block = Block(how)
    found = []
    for step in range(3):
        xs = [torch.randn(16, 8, requires_grad=True) * (1 + step + i) for i in range(2)]
        if schedule == "accumulate":
            for x in xs:
                block(x).square().sum().backward()
        elif schedule == "joint":
            sum(block(x).square().sum() for x in xs).backward()  # type: ignore[union-attr]
        else:  # the same module twice in one graph
            block(block(xs[0])).square().sum().backward()
        found += [p.grad.clone() for p in block.parameters() if p.grad is not None]
        block.zero_grad()
    return [*found, block.quantizer.scale.clone(), block.quantizer.observer.pending_maximum.clone()]


@pytest.mark.parametrize(
    ("how", "schedule"),
    [("non-reentrant", "accumulate"), ("non-reentrant", "joint"), ("non-reentrant", "shared"), ("reentrant", "accumulate")],
)
def test_activation_checkpointing_changes_nothing(how: str, schedule: str) -> None:
    """With observers on: gradients, scales and what is pending equal those without checkpointing, bit for bit.

    A reentrant checkpoint hides its first forward from autograd, so that a lone quantizer cannot know that an earlier call
    waits; in a prepared model the outermost module knows (test_training_integration.py).
    """
    for plain, checkpointed in zip(train("plain", schedule), train(how, schedule), strict=True):
        assert torch.equal(plain, checkpointed)


def test_deepcopy_is_independent() -> None:
    quantizer = FakeQuantize(QuantScheme(uint8))
    quantizer(torch.tensor([0.0, 2.55]))
    copied = copy.deepcopy(quantizer)
    for _ in range(3):
        copied(torch.tensor([0.0, 100.0]))
    assert float(quantizer.scale) == pytest.approx(0.01)
    assert float(copied.scale) > 0.05
