from __future__ import annotations

import pytest
import torch
from torch import Tensor

from truequant.numerics import IntegerWeights, Normalization, fold, folded_bias, folds_free, scale_and_zero_point
from truequant.schemes import PerChannel, PerTensor, PowerOfTwoScale, QuantScheme, int1, int2, int4, int8

FREE = QuantScheme(int8, PerChannel(0))
TENSOR = QuantScheme(int8, PerTensor())
POW2 = QuantScheme(int8, PerChannel(0), scale=PowerOfTwoScale())
SX = torch.tensor(0.02)


def layer(channels: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(channels, 3, 3, 3, generator=generator), torch.randn(channels, generator=generator)


def norm(gamma: list[float], beta: float = 0.5) -> Normalization:
    count = len(gamma)
    generator = torch.Generator().manual_seed(1)
    mean, var = torch.randn(count, generator=generator), torch.rand(count, generator=generator) + 0.1
    return Normalization(mean, var, torch.tensor(gamma), torch.full((count,), beta), 1e-5)


def scale_of(weight: Tensor, scheme: QuantScheme) -> Tensor:
    flat = weight.flatten(1) if isinstance(scheme.granularity, PerChannel) else weight.reshape(1, -1)
    scale, _ = scale_and_zero_point(flat.amin(1), flat.amax(1), scheme)
    return scale if isinstance(scheme.granularity, PerChannel) else scale.reshape(())


def folded(weight: Tensor, bias: Tensor | None, n: Normalization | None, scheme: QuantScheme) -> IntegerWeights:
    own = weight if folds_free(scheme) or n is None else (weight.double() * n.factor().reshape(-1, 1, 1, 1)).float()
    return fold(weight, scale_of(own, scheme), scheme, bias, n, SX)


def promises(w: IntegerWeights, scheme: QuantScheme) -> None:
    assert torch.equal(w.weight, w.weight.round())
    assert w.weight.abs().max() <= scheme.qmax
    assert w.weight.dtype == w.scale.dtype == torch.float32
    assert bool((torch.isfinite(w.scale) & (w.scale >= 2.0**-121)).all())
    assert bool((SX * w.scale >= 2.0**-101).all())
    assert w.bias.dtype == torch.float64
    assert torch.equal(w.bias, w.bias.round())
    assert w.bias.abs().max() <= 2**30
    if scheme.power_of_two:
        assert torch.equal(torch.frexp(w.scale).mantissa, torch.full_like(w.scale, 0.5))


def test_without_norm_codes_and_bias_are_the_plain_ones() -> None:
    weight, bias = layer()
    w = folded(weight, bias, None, FREE)
    scale = scale_of(weight, FREE)
    assert torch.equal(w.scale, scale)
    assert torch.equal(w.weight, torch.round(weight / scale.reshape(-1, 1, 1, 1)))
    assert torch.equal(w.bias, torch.round(bias.double() / (SX * scale).double()))
    assert torch.equal(folded(weight, None, None, FREE).bias, torch.zeros(6, dtype=torch.float64))


def test_free_scales_keep_the_codes_of_the_weight_but_for_the_sign() -> None:
    weight, bias = layer()
    gamma = [1.0, -0.7, 2.5, -3.0, 0.01, 1e-3]
    n = norm(gamma)
    plain, w = folded(weight, None, None, FREE), folded(weight, bias, n, FREE)
    promises(w, FREE)
    sign = torch.tensor(gamma).sign().reshape(-1, 1, 1, 1)
    assert torch.equal(w.weight, plain.weight * sign)
    assert torch.equal(w.scale, (plain.scale.double() * n.factor().abs()).float())
    real = folded_bias(bias, n, 6, weight)
    assert torch.equal(w.bias, torch.round(real / (SX * w.scale).double()))


def test_the_folded_layer_is_the_layer_and_its_norm() -> None:
    weight, bias = layer()
    n = norm([1.0, -0.7, 2.5, -3.0, 0.2, 0.5])
    for scheme in (FREE, TENSOR, POW2):
        w = folded(weight, bias, n, scheme)
        promises(w, scheme)
        x = torch.randint(-128, 128, (2, 3, 5, 5)).float()
        conv = torch.nn.functional.conv2d(x * SX, weight, bias)
        wanted = torch.nn.functional.batch_norm(conv, n.mean, n.var, n.gamma, n.beta, False, 0.0, n.eps)
        acc = torch.nn.functional.conv2d(x.double(), w.weight.double(), w.bias)
        got = acc * (SX * w.scale).double().reshape(1, -1, 1, 1)
        assert (got - wanted).abs().max() < wanted.abs().max() * 0.03


@pytest.mark.parametrize("scheme", [FREE, TENSOR, POW2, QuantScheme(int4, PerChannel(0)), QuantScheme(int2, PerChannel(0))])
@pytest.mark.parametrize("gamma", [0.0, -0.0, 1e-30, -1e-30, 1e-12, -1e-12, 1e-7, 1e30, -1.0])
def test_gamma_zero_negative_tiny_and_huge(scheme: QuantScheme, gamma: float) -> None:
    weight, bias = layer(2)
    w = folded(weight, bias, norm([gamma, 1.0]), scheme)
    promises(w, scheme)
    if abs(gamma) < 1e-10:
        assert torch.equal(w.weight[0], torch.zeros_like(w.weight[0]))  # a dead channel is its bias
        shift = float(w.bias[0] * (SX * w.scale[0]).double())
        assert abs(shift - 0.5) < 0.5 * 2**-7 + float(SX * w.scale[0])


def test_a_dead_channel_keeps_its_bias_to_30_bits() -> None:
    weight, _ = layer(2)
    w = folded(weight, None, norm([0.0, 1.0]), FREE)
    assert w.bias[0].abs() >= 2**29
    assert float(w.bias[0] * (SX * w.scale[0]).double()) == pytest.approx(0.5, rel=2**-28)


def test_zero_weights_and_no_bias() -> None:
    weight = torch.zeros(2, 3, 1, 1)
    for scheme in (FREE, TENSOR, POW2):
        w = folded(weight, None, None, scheme)
        promises(w, scheme)
        assert not w.weight.any()
        assert not w.bias.any()


def test_binary_weights_have_no_zero() -> None:
    scheme = QuantScheme(int1, PerChannel(0))
    weight, bias = layer(3)
    weight[0, 0, 0, 0] = 0.0
    w = fold(weight, torch.ones(3), scheme, bias, norm([1.0, -1.0, 0.0]), SX)
    assert set(w.weight.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(w.weight[0], torch.where(weight[0] < 0, -1.0, 1.0))
    assert torch.equal(w.weight[1], torch.where(weight[1] < 0, 1.0, -1.0))


def test_the_bias_without_norm_parameters() -> None:
    n = Normalization(torch.tensor([1.0]), torch.tensor([4.0]), None, None, 0.0)
    assert n.factor().tolist() == [0.5]
    assert folded_bias(torch.tensor([5.0]), n, 1, torch.zeros(1)).tolist() == [2.0]
    assert folded_bias(None, n, 1, torch.zeros(1)).tolist() == [-0.5]


def test_which_schemes_fold_freely() -> None:
    assert folds_free(FREE)
    assert not folds_free(TENSOR)
    assert not folds_free(POW2)


def test_codes_are_in_the_order_of_a_file() -> None:
    weight, bias = layer()
    scale = scale_of(weight, FREE)
    last = weight.contiguous(memory_format=torch.channels_last)
    found, expected = fold(last, scale, FREE, bias, None, SX).weight, fold(weight, scale, FREE, bias, None, SX).weight
    assert found.is_contiguous()
    assert torch.equal(found, expected)
