"""Each algorithm against its paper, written again here with plain autograd: values, gradients, and the traps around them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from truequant.fake import FakeQuantize, WeightQuantizer
from truequant.schemes import (
    EWGS,
    LSQ,
    MSE,
    PACT,
    TQT,
    TWN,
    DoReFa,
    FloatScale,
    IntegerType,
    LSQPlus,
    PerChannel,
    PowerOfTwoScale,
    QuantScheme,
    Stochastic,
    int1,
    int2,
    int3,
    int4,
    int7,
    int8,
    uint2,
    uint4,
    uint8,
)  # fmt: skip


class _Round(torch.autograd.Function):
    """Rounding whose gradient passes straight through: the tests' own, independent of the library's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def rounded(x: Tensor) -> Tensor:
    result: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return result


def activation(scheme: QuantScheme, values: Tensor) -> FakeQuantize:
    """A quantizer whose range was set from `values`."""
    quantizer = FakeQuantize(scheme)
    with torch.no_grad():
        quantizer(values)
    return quantizer


def weight(scheme: QuantScheme, values: Tensor, tied: bool = False) -> WeightQuantizer:
    quantizer = WeightQuantizer(scheme, values.shape[0] if isinstance(scheme.granularity, PerChannel) else None, tied=tied)
    quantizer.initialize(values)
    return quantizer


def gradients(quantizer: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = quantizer(x)
    y.backward(upstream)
    assert x.grad is not None
    return y.detach(), x.grad


def close(a: Tensor | None, b: Tensor | None) -> bool:
    assert a is not None
    assert b is not None
    return torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6)


# -- LSQ ---------------------------------------------------------------------------------------------------------------
def paper_lsq(v: Tensor, s: Tensor, low: int, high: int, g: float) -> Tensor:
    """Esser et al., appendix A: `gradscale`, `roundpass`, and a clip whose autograd gives equations 3 and 5."""
    s = (s - s * g).detach() + s * g
    return rounded(torch.clamp(v / s, low, high)) * s


@pytest.mark.parametrize(("kind", "features"), [(uint4, 30), (uint8, 30), (uint2, 30)])
def test_lsq_of_activations_is_the_code_of_the_paper(kind: IntegerType, features: int) -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(16, 5, 6).abs() * 3, torch.randn(16, 5, 6)
    quantizer = activation(QuantScheme(kind, symmetric=True, observer=MSE(), scale=LSQ()), x)
    with torch.no_grad():
        quantizer.scale.mul_(0.7)
    y, dx = gradients(quantizer, x, upstream)
    s, v = quantizer.scale.clone().requires_grad_(), x.clone().requires_grad_()
    expected = paper_lsq(v, s, 0, kind.qmax, 1 / math.sqrt(features * kind.qmax))  # N: features of one sample, no batch
    expected.backward(upstream)
    assert torch.equal(y, expected.detach())
    assert close(dx, v.grad)
    assert quantizer.shift is not None
    assert close(quantizer.shift.grad * quantizer.scale, s.grad)  # type: ignore[operator]


def test_the_batch_size_does_not_change_the_pace_of_an_activation_scale() -> None:
    x = torch.rand(4, 8) * 3
    quantizer = activation(QuantScheme(uint4, scale=LSQ()), x)
    grads = []
    for repeats in (1, 5):
        quantizer.zero_grad()
        quantizer(x.repeat(repeats, 1)).mean().backward()
        assert quantizer.shift is not None
        grads.append(quantizer.shift.grad)
    assert close(grads[0], grads[1])


@pytest.mark.parametrize("kind", [int2, int3, int4, int8])
def test_lsq_of_weights_counts_the_weights_of_a_channel(kind: IntegerType) -> None:
    torch.manual_seed(1)
    w, upstream = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    quantizer = weight(QuantScheme(kind, PerChannel(0), scale=LSQ()), w)
    with torch.no_grad():
        quantizer.scale.mul_(0.5)
    y, dw = gradients(quantizer, w, upstream)
    s, v = quantizer.scale.clone().requires_grad_(), w.clone().requires_grad_()
    expected = paper_lsq(v, s[:, None, None, None], -kind.qmax, kind.qmax, 1 / math.sqrt(16 * kind.qmax))
    expected.backward(upstream)
    assert torch.equal(y, expected.detach())
    assert close(dw, v.grad)
    assert quantizer.shift is not None
    assert close(quantizer.shift.grad * quantizer.scale, s.grad)  # type: ignore[operator]


def test_lsq_of_binary_weights_has_a_scale_and_a_gradient() -> None:
    torch.manual_seed(2)
    w, upstream = torch.randn(3, 8), torch.randn(3, 8)
    quantizer = weight(QuantScheme(int1, PerChannel(0), scale=LSQ()), w)
    assert close(quantizer.scale, w.abs().mean(1))  # Qp = 0 would divide by zero
    y, dw = gradients(quantizer, w, upstream)
    assert torch.equal(y, torch.where(w < 0, -1.0, 1.0) * quantizer.scale[:, None])
    assert quantizer.shift is not None
    assert bool(torch.isfinite(quantizer.shift.grad).all())  # type: ignore[arg-type]
    assert bool(((dw == upstream) | (dw == 0)).all())


@pytest.mark.parametrize("value", [0.0, 15.0])
def test_lsq_masks_before_rounding_and_plain_fake_quantization_after(value: float) -> None:
    """A value that rounds to the last code from beyond it: LSQ gives it no gradient, the straight-through estimator does."""
    beyond = torch.tensor([value + (0.25 if value else -0.25)])
    for scale, passes in ((LSQ(), False), (FloatScale(), True)):
        quantizer = activation(QuantScheme(uint4, symmetric=True, scale=scale), torch.tensor([0.0, 15.0]))
        quantizer.observing = False
        assert bool(gradients(quantizer, beyond, torch.ones(1))[1]) is passes


# -- LSQ+ --------------------------------------------------------------------------------------------------------------
def test_lsq_plus_is_the_paper_where_its_offset_is_a_whole_number_of_steps() -> None:
    torch.manual_seed(3)
    x, upstream = torch.randn(8, 40) * 2 - 0.3, torch.randn(8, 40)
    quantizer = activation(QuantScheme(uint4, scale=LSQPlus()), x)
    with torch.no_grad():
        quantizer.scale.mul_(0.6)
    zero = int(quantizer.zero_point)
    assert 0 < zero < 15
    y, dx = gradients(quantizer, x, upstream)
    g = 1 / math.sqrt(40 * 15)
    s, beta, v = (
        quantizer.scale.clone().requires_grad_(),
        (-zero * quantizer.scale).requires_grad_(),
        x.clone().requires_grad_(),
    )
    step, offset = (s - s * g).detach() + s * g, (beta - beta * g).detach() + beta * g
    expected = rounded(torch.clamp((v - offset) / step, 0, 15)) * step + offset  # equations 3 and 4
    expected.backward(upstream)
    assert close(y, expected.detach())
    assert close(dx, v.grad)
    assert quantizer.shift is not None
    assert close(quantizer.shift.grad * quantizer.scale, s.grad)  # type: ignore[operator]
    assert close(quantizer.offset.grad * quantizer.scale, beta.grad)


def test_lsq_plus_keeps_real_zero_on_the_grid_wherever_its_offset_goes() -> None:
    x = torch.randn(4, 10)
    quantizer = activation(QuantScheme(uint4, scale=LSQPlus()), x)
    for offset in (-40.0, -3.3, -0.49, 0.0, 2.7, 50.0):
        with torch.no_grad():
            quantizer.offset.fill_(offset)
        zero = quantizer.zero_point
        assert bool(zero == torch.round(zero))
        assert 0 <= int(zero) <= 15
        assert float(quantizer(torch.zeros(1)).detach()) == 0.0
        assert torch.equal(quantizer(x).detach(), quantizer.eval()(x).detach())
        quantizer.train()


def test_an_offset_at_the_end_of_its_range_moves_back_and_never_on() -> None:
    x = torch.cat([torch.full((8,), -9.0), torch.full((8,), 9.0)])[None]
    quantizer = activation(QuantScheme(uint4, scale=LSQPlus()), torch.linspace(-1, 1, 16)[None])
    for offset, sign, moves in ((-40.0, 1.0, True), (-40.0, -1.0, False), (40.0, -1.0, True), (40.0, 1.0, False)):
        quantizer.zero_grad()
        with torch.no_grad():
            quantizer.offset.fill_(offset)
        quantizer(x).backward(torch.full_like(x, -sign))
        assert bool(quantizer.offset.grad != 0) is moves, (offset, sign)


def test_lsq_plus_starts_weights_at_three_deviations_of_a_channel() -> None:
    torch.manual_seed(4)
    w = torch.randn(5, 30) * torch.arange(1, 6)[:, None] + 0.2
    quantizer = weight(QuantScheme(int4, PerChannel(0), scale=LSQPlus()), w)
    mean, deviation = w.mean(1), w.std(1, unbiased=False)
    assert close(quantizer.scale, torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs()) / 8)


# -- PACT --------------------------------------------------------------------------------------------------------------
def test_pact_is_the_paper() -> None:
    torch.manual_seed(5)
    x, upstream = torch.randn(6, 20) * 4, torch.randn(6, 20)
    quantizer = activation(QuantScheme(uint4, scale=PACT(alpha=3.0, decay=0.0)), x)
    assert float(quantizer.scale) == pytest.approx(3 / 15)
    y, dx = gradients(quantizer, x, upstream)
    alpha, v = (quantizer.scale * 15).clone().requires_grad_(), x.clone().requires_grad_()
    clipped = 0.5 * (v.abs() - (v - alpha).abs() + alpha)  # equation 1
    expected = rounded(clipped.detach() * 15 / alpha.detach()) * alpha.detach() / 15  # equation 2
    assert close(y, expected)
    clipped.backward(upstream)  # equation 3: the quantizer passes straight through
    assert close(dx, v.grad)
    assert quantizer.shift is not None
    assert close(quantizer.shift.grad * alpha.detach(), alpha.grad)  # type: ignore[operator]


def test_pact_decays_its_level() -> None:
    quantizer = activation(QuantScheme(uint4, scale=PACT(alpha=3.0, decay=0.01)), torch.ones(1))
    quantizer(torch.zeros(4)).sum().backward()
    assert quantizer.shift is not None
    assert float(quantizer.shift.grad) * 3.0 == pytest.approx(0.01 * 3.0)  # type: ignore[arg-type]


def test_signed_pact_clips_on_both_sides() -> None:
    quantizer = activation(QuantScheme(int4, scale=PACT(alpha=2.0, decay=0.0)), torch.ones(1))
    y, dx = gradients(quantizer, torch.tensor([-5.0, 0.5, 5.0]), torch.tensor([1.0, 1.0, 2.0]))
    assert close(y[[0, 2]], torch.tensor([-2.0, 2.0]))
    assert dx.tolist() == [0.0, 1.0, 0.0]
    assert quantizer.shift is not None
    assert float(quantizer.shift.grad) * 2.0 == pytest.approx(2.0 - 1.0)  # type: ignore[arg-type]


# -- TQT ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("normalized", [False, True])
def test_tqt_is_the_paper(normalized: bool) -> None:
    torch.manual_seed(6)
    x, upstream = torch.randn(6, 20) * 3, torch.randn(6, 20)
    quantizer = activation(QuantScheme(int4, scale=TQT(normalized)), x)
    assert quantizer.shift is not None
    for shift in (0.0, -0.8, -1.7):
        quantizer.zero_grad()
        with torch.no_grad():
            quantizer.shift.fill_(shift)
        y, dx = gradients(quantizer, x, upstream)
        scale = 2.0 ** math.ceil(math.log2(float(quantizer.scale)) + shift)  # equation 4
        assert close(y, torch.clamp(torch.round(x / scale), -7, 7) * scale)
        inside = (x / scale).abs() < 7
        slope = torch.where(inside, torch.round(x / scale) - x / scale, 7 * torch.sign(x))
        expected = math.log(2) * scale * (upstream * slope).sum()  # equation 7
        if normalized:
            expected = expected / scale**2 / math.sqrt(20 * 7)
        assert close(quantizer.shift.grad, expected)
        assert close(dx, torch.where(inside, upstream, 0.0))  # equation 8


def test_a_learned_power_of_two_starts_between_powers() -> None:
    """On a power of two, any step up would double the scale at once."""
    quantizer = activation(QuantScheme(uint4, symmetric=True, scale=TQT()), torch.tensor([0.0, 11.0]))
    assert float(quantizer.scale) == pytest.approx(11 / 15)
    assert float(quantizer.effective_scale().detach()) == 1.0


# -- DoReFa ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [int2, int3, int4, int7])
@pytest.mark.parametrize("keep", [False, True])
def test_dorefa_weights_are_the_paper_on_odd_codes(kind: IntegerType, keep: bool) -> None:
    torch.manual_seed(7)
    w, upstream, levels = torch.randn(4, 9), torch.randn(4, 9), 2**kind.bits - 1
    quantizer = weight(QuantScheme(kind, scale=DoReFa(keep_magnitude=keep)), w)
    y, dw = gradients(quantizer, w, upstream)
    v = w.clone().requires_grad_()
    reach = torch.tanh(w).abs().max()
    expected = 2 * rounded(levels * (torch.tanh(v) / (2 * reach) + 0.5)) / levels - 1  # equation 9
    expected = expected * reach if keep else expected
    expected.backward(upstream)
    assert close(y, expected.detach())
    assert close(dw, v.grad)
    codes = quantizer.codes(w)
    assert bool((codes.abs() % 2 == 1).all())
    assert int(codes.abs().max()) == levels
    assert close(codes * quantizer.scale, y)


def test_dorefa_of_one_bit_is_the_sign_with_the_mean_of_the_weights() -> None:
    w, upstream = torch.tensor([[-3.0, 0.0, 0.5, 40.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    y, dw = gradients(weight(QuantScheme(int1, scale=DoReFa()), w), w, upstream)
    assert close(y, torch.tensor([[-1.0, 1.0, 1.0, 1.0]]) * w.abs().mean())  # equation 7; sign(0) = +1
    assert torch.equal(dw, upstream)  # equation 8


def test_dorefa_activations_have_a_fixed_range() -> None:
    quantizer = FakeQuantize(QuantScheme(uint2, scale=DoReFa()))
    y, dx = gradients(quantizer, torch.tensor([-1.0, 0.1, 0.4, 0.9, 7.0]), torch.ones(5))
    assert close(y, torch.tensor([0.0, 0.0, 1 / 3, 1.0, 1.0]))
    assert dx.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


# -- ternary weights ---------------------------------------------------------------------------------------------------
def test_ternary_weights_are_the_paper() -> None:
    torch.manual_seed(8)
    w, upstream = torch.randn(3, 50), torch.randn(3, 50)
    quantizer = weight(QuantScheme(int2, PerChannel(0), scale=TWN()), w)
    y, dw = gradients(quantizer, w, upstream)
    for row, result in zip(w, y, strict=True):
        delta = 0.7 * row.abs().mean()  # equation 6
        outside = row.abs() > delta
        scale = row[outside].abs().mean()  # equation 5
        assert close(result, torch.where(outside, torch.sign(row), 0.0) * scale)
    assert torch.equal(dw, upstream)
    assert set(quantizer.codes(w).flatten().tolist()) == {-1.0, 0.0, 1.0}


# -- roundings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [FloatScale(), LSQ(), PowerOfTwoScale()])
def test_ewgs_is_the_paper(scale: Any) -> None:
    """Lee, Kim and Ham, equations 1 to 4, on the normalized variable x_n in [0, 1]; all other gradients by autograd."""
    torch.manual_seed(9)
    delta = 0.7

    class Discretized(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
            q = torch.round(x * levels) / levels
            ctx.save_for_backward(x - q)
            return q

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return grad * (1 + delta * torch.sign(grad) * ctx.saved_tensors[0]), None

    x, upstream = torch.rand(4, 30) * 4, torch.randn(4, 30)
    quantizer = activation(QuantScheme(uint4, symmetric=True, scale=scale, rounding=EWGS(delta)), x)
    quantizer.observing = False
    with torch.no_grad():
        quantizer.scale.mul_(0.5)
    y, dx = gradients(quantizer, x, upstream)
    s, v = quantizer.scale.clone().requires_grad_(), x.clone().requires_grad_()
    normalized = torch.clamp(v / (15 * s), 0, 1)
    discrete: Tensor = Discretized.apply(normalized, 15)  # type: ignore[no-untyped-call]
    (discrete * 15 * s).backward(upstream)
    assert close(y, (discrete * 15 * s).detach())
    if isinstance(scale, LSQ):
        assert close(dx, v.grad)
        assert quantizer.shift is not None
        assert close(quantizer.shift.grad * quantizer.scale * math.sqrt(30 * 15), s.grad)  # type: ignore[operator]
    else:  # the mask of observed scales lies behind the rounding: it lets half a step more pass
        edge = (x / quantizer.scale - 15).abs() <= 0.5
        assert close(torch.where(edge, 0.0, dx), torch.where(edge, 0.0, v.grad))  # type: ignore[arg-type]


def test_stochastic_rounding_is_right_on_average_and_absent_in_evaluation() -> None:
    torch.manual_seed(10)
    quantizer = activation(QuantScheme(uint8, symmetric=True, rounding=Stochastic()), torch.tensor([0.0, 255.0]))
    quantizer.observing = False
    x = torch.full((20000,), 3.3)
    y = quantizer(x)
    assert set(y.tolist()) == {3.0, 4.0}
    assert float(y.mean()) == pytest.approx(3.3, abs=0.02)
    assert set(quantizer.eval()(x).tolist()) == {3.0}
