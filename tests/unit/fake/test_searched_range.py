"""A range that is searched: once for a weight, held in training, and in evaluation always that of the weight as it stands."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant import kernels, numerics
from truequant.fake import WeightQuantizer, searched
from truequant.observers import weight_range
from truequant.schemes import (
    MSE,
    Freezing,
    Histogram,
    MinMax,
    Percentile,
    PerChannel,
    PerGroup,
    PerTensor,
    PowerOfTwoScale,
    QuantScheme,
    int4,
    int8,
)

PRESETS = ("w4a16", "w4a8-dynamic")
Changed = Callable[[Any], None]


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 8))


def batch(seed: int = 1) -> Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(seed))


def quantizer_of(layer: Any) -> WeightQuantizer:
    found = layer.quantizers["weight"]
    assert isinstance(found, WeightQuantizer)
    return found


def by_hand(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """The scale that the reference finds, without a kernel and without memory."""
    return numerics.scale_and_zero_point(*weight_range(weight.detach().float(), scheme), scheme)[0]


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[QuantScheme]:
    """The schemes that were searched for, one a search."""
    made: list[QuantScheme] = []
    search = searched.search

    def counted(values: Tensor, scheme: QuantScheme) -> Tensor:
        made.append(scheme)
        return search(values, scheme)

    monkeypatch.setattr(searched, "search", counted)
    return made


@pytest.mark.parametrize("preset", PRESETS)
def test_once_in_training_evaluation_and_conversion(preset: str, searches: list[QuantScheme]) -> None:
    qat = tq.prepare(model(), batch(), preset)
    assert len(searches) == 2
    with torch.no_grad():
        qat.eval()(batch())
    tq.calibrate(qat, [batch()])
    optimizer = torch.optim.SGD(tq.training.parameter_groups(qat), 0.1)
    for step in range(4):
        qat.train()(batch(step)).square().mean().backward()  # the first two are accumulated
        if step:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            qat.eval()(batch())
    int8 = tq.convert(qat)
    assert torch.equal(int8(batch(7)), qat(batch(7)))
    assert len(searches) == 2


@pytest.mark.parametrize("observer", [MSE(), Histogram(), Percentile(99.0)])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(16)])
def test_training_holds_what_was_searched(observer: Any, granularity: Any) -> None:
    scheme = QuantScheme(int4, granularity, observer=observer)
    qat = tq.prepare(nn.Sequential(nn.Linear(64, 8)), batch(), tq.QConfig(scheme, None, None, None))
    quantizer: Any = quantizer_of(qat[0])
    keys = set(qat.state_dict())
    wanted = by_hand(qat[0].weight, scheme)
    optimizer = torch.optim.SGD(tq.training.parameter_groups(qat), 1.0)
    for step in range(3):
        qat.train()(batch(step)).square().mean().backward()
        optimizer.step()
        assert torch.equal(quantizer.scale, wanted)
    assert not torch.equal(by_hand(qat[0].weight, scheme), wanted)
    assert quantizer.is_held
    assert bool(quantizer.held)
    assert set(qat.state_dict()) == keys
    values = quantizer.values(qat[0].weight)
    assert torch.equal(qat(batch()), nn.functional.linear(batch(), values, qat[0].bias))  # in training
    with torch.no_grad():
        assert torch.equal(qat.eval()(batch()), nn.functional.linear(batch(), values, qat[0].bias))
    assert torch.equal(tq.convert(qat)(batch()), qat(batch()))
    quantizer.release()
    assert torch.equal(quantizer.scale_of(qat[0].weight), by_hand(qat[0].weight, scheme))


def test_a_range_that_is_read_follows_the_weight_in_training() -> None:
    scheme = QuantScheme(int4, PerGroup(16), observer=MinMax())
    qat = tq.prepare(nn.Sequential(nn.Linear(64, 8)), batch(), tq.QConfig(scheme, None, None, None))
    qat.train()(batch())
    with torch.no_grad():
        qat[0].weight.mul_(2.0)
    qat(batch())
    assert not quantizer_of(qat[0]).is_held
    assert torch.equal(quantizer_of(qat[0]).scale, by_hand(qat[0].weight, scheme))


def test_a_range_of_a_power_of_two_and_of_frozen_codes_is_held() -> None:
    for scheme in (
        QuantScheme(int4, PerChannel(0), observer=MSE(), scale=PowerOfTwoScale()),
        QuantScheme(int4, PerChannel(0), observer=MSE(), oscillation=Freezing(0.5, 0.02)),
    ):
        qat = tq.prepare(nn.Sequential(nn.Linear(64, 8)), batch(), tq.QConfig(scheme, None, None, None))
        scale = quantizer_of(qat[0]).scale.clone()
        optimizer = torch.optim.SGD(tq.training.parameter_groups(qat), 1.0)
        for step in range(4):
            qat.train()(batch(step)).square().mean().backward()
            optimizer.step()
        assert torch.equal(quantizer_of(qat[0]).scale, scale)
        assert torch.equal(tq.convert(qat.eval())(batch()), qat(batch()))


def test_a_scale_tied_to_a_batchnorm_follows_its_statistics() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6)
    weight = QuantScheme(int8, PerTensor(), observer=MSE())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    qat = tq.calibrate(tq.prepare(net, x, tq.QConfig(weight=weight)), [x])
    quantizer = quantizer_of(qat[0])
    assert quantizer.tied
    qat.train()(3.0 * x).sum().backward()
    assert not quantizer.is_held
    before = quantizer.scale.clone()
    qat(5.0 * x)
    assert not torch.equal(quantizer.scale, before)
    int8_model = tq.convert(qat.eval())
    assert tq.verify(qat, int8_model, [x], runtimes=("reference",)).codes_different == 0


# -- evaluation after every way of changing a weight -----------------------------------------------------------------------
def _in_place(layer: Any) -> None:
    with torch.no_grad():
        layer.weight.mul_(1.7)


def _behind_the_version(layer: Any) -> None:
    layer.weight.data.mul_(1.7)


def _one_sign_behind_the_version(layer: Any) -> None:
    layer.weight.data.view(-1)[layer.weight.abs().argmax()] *= -1.0


def _all_signs(layer: Any) -> None:
    layer.weight.data.neg_().exp_()


def _swapped(layer: Any) -> None:
    layer.weight.data[[0, 1]] = layer.weight.data[[1, 0]].clone()


def _data(layer: Any) -> None:
    layer.weight.data = layer.weight.data * 1.7


def _data_twice(layer: Any) -> None:
    """The second may lie where the first one lay."""
    layer.weight.data = layer.weight.data * 1.3
    layer.weight.data = layer.weight.data * 1.3


def _parameter(layer: Any) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() * 1.7)


def _state(layer: Any) -> None:
    layer.load_state_dict({"weight": layer.weight * 1.7}, strict=False)


def _assigned(layer: Any) -> None:
    layer.load_state_dict({"weight": nn.Parameter(layer.weight.detach() * 1.7)}, strict=False, assign=True)


def _through_numpy(layer: Any) -> None:
    layer.weight.detach().numpy()[:] *= 1.7


def _storage(layer: Any) -> None:
    layer.weight.untyped_storage().copy_((layer.weight.detach() * 1.7).untyped_storage())


def _optimizer(layer: Any) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD([layer.weight], 0.3).step()
    layer.weight.grad = None


def _requires_grad(layer: Any) -> None:
    layer.weight.requires_grad_(False).mul_(1.7)
    layer.weight.requires_grad_(True)


def _dtype(layer: Any) -> None:
    layer.to(torch.bfloat16).float()


CHANGES = [
    _in_place, _behind_the_version, _one_sign_behind_the_version, _all_signs, _swapped, _data, _data_twice, _parameter, _state,
    _assigned, _through_numpy, _storage, _optimizer, _requires_grad, _dtype,
]  # fmt: skip


@pytest.mark.parametrize("level", [kernels.levels()[0], "reference"])
@pytest.mark.parametrize("change", CHANGES)
def test_evaluation_and_conversion_see_every_change(change: Changed, level: str) -> None:
    with kernels.using(level), torch.no_grad():
        qat = tq.prepare(model(), batch(), "w4a16").eval()
        before = qat(batch()), qat(batch())[0]
        changed = copy.deepcopy(qat)
        changed(batch())
        for one in (qat, changed):
            change(one[0])
            fresh = model()
            fresh[0].load_state_dict({"weight": one[0].weight, "bias": one[0].bias})
            fresh[2].load_state_dict({"weight": one[2].weight, "bias": one[2].bias})
            wanted = tq.prepare(fresh, batch(), "w4a16").eval()(batch())
            assert not torch.equal(wanted, before[0])
            assert torch.equal(one(batch()), wanted)
            assert torch.equal(tq.convert(one)(batch()), wanted)
            assert torch.equal(
                quantizer_of(one[0]).scale_of(one[0].weight), by_hand(one[0].weight, one[0].quantizers.weight.scheme)
            )


@pytest.mark.parametrize("change", CHANGES)
def test_so_does_evaluation_with_a_range_that_training_held(change: Changed) -> None:
    qat = tq.prepare(model(), batch(), "w4a16")
    qat.train()(batch()).sum().backward()
    held = quantizer_of(qat[0]).scale.clone()
    with torch.no_grad():
        qat.eval()(batch())
        change(qat[0])
        layer, quantizer = qat[0], quantizer_of(qat[0])
        other = change in (_state, _assigned)  # a weight that comes without a range is another weight
        scale = by_hand(layer.weight, quantizer.scheme) if other else held
        codes = numerics.quantize(
            layer.weight, numerics.expand(scale, quantizer.scheme.granularity, tuple(layer.weight.shape)), torch.zeros(()),
            quantizer.scheme.qmin, quantizer.scheme.qmax,
        )  # fmt: skip
        assert torch.equal(quantizer.codes(layer.weight), codes)
        wanted = nn.functional.linear(batch(), numerics.weight_values(codes, scale), layer.bias)
        assert torch.equal(layer(batch()), wanted)
        assert torch.equal(tq.convert(qat)(batch()), qat(batch()))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_fingerprint_tells_bits_apart(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for level in kernels.levels():
            with kernels.using(level):
                x = torch.randn(3, 50_001)
                known = kernels.fingerprint(x)
                assert kernels.fingerprint(x.clone()) == known
                assert kernels.fingerprint(x.t().contiguous().t()) == known
                for place in (0, 5, 77_777, 150_002):
                    other = x.clone().reshape(-1)
                    other[place] = -other[place]
                    assert kernels.fingerprint(other) != known
                assert kernels.fingerprint(-x) != known
                assert kernels.fingerprint(x.flip(0)) != known
                assert kernels.fingerprint(torch.zeros(3)) != kernels.fingerprint(-torch.zeros(3))
                assert kernels.fingerprint(torch.zeros(3)) != kernels.fingerprint(torch.zeros(4))
    finally:
        torch.set_num_threads(before)


def test_what_is_remembered_does_not_travel() -> None:
    qat = tq.prepare(model(), batch(), "w4a16").eval()
    qat(batch())
    assert quantizer_of(qat[0]).searched.scale is not None
    file = io.BytesIO()
    torch.save(qat, file)
    file.seek(0)
    for other in (copy.deepcopy(qat), torch.load(file, weights_only=False)):
        assert quantizer_of(other[0]).searched.scale is None
        assert torch.equal(other(batch()), qat(batch()))


def test_evaluation_under_inference_mode_leaves_nothing_that_autograd_refuses() -> None:
    qat = tq.prepare(model(), batch(), "w4a16").eval()
    with torch.no_grad():
        qat[0].weight.mul_(1.5)
    with torch.inference_mode():
        wanted = qat(batch()).clone()
    y = qat(batch())
    y.sum().backward()
    assert torch.equal(y.detach(), wanted)


def test_a_state_of_before_is_searched_for_again() -> None:
    """It says that nothing is held, and its scale is that of the last step but one."""
    qat = tq.prepare(model(), batch(), "w4a16")
    qat.train()(batch()).sum().backward()
    torch.optim.SGD(qat.parameters(), 0.1).step()
    state = {k: v.clone() for k, v in qat.state_dict().items()}
    for name in state:
        if name.endswith("held"):
            state[name].zero_()
    other = tq.prepare(model(3), batch(), "w4a16")
    other.train()(batch())
    assert quantizer_of(other[0]).is_held
    other.load_state_dict(state)
    other.eval()
    quantizer = quantizer_of(other[0])
    assert not quantizer.is_held
    wanted = by_hand(other[0].weight, quantizer.scheme)
    assert not torch.equal(wanted, state["0.quantizers.weight.scale"])
    assert torch.equal(quantizer.scale_of(other[0].weight), wanted)
    assert torch.equal(tq.convert(other)(batch()), other(batch()))


def test_a_trained_state_keeps_its_range_and_float_weights_bring_none() -> None:
    qat = tq.prepare(model(), batch(), "w4a16")
    qat.train()(batch()).sum().backward()
    torch.optim.SGD(qat.parameters(), 0.1).step()
    other = tq.prepare(model(3), batch(), "w4a16")
    other.load_state_dict(qat.state_dict())
    assert torch.equal(other.eval()(batch()), qat.eval()(batch()))
    assert quantizer_of(other[0]).is_held
    qat.load_state_dict(model(5).state_dict(), strict=False)
    assert torch.equal(qat(batch()), tq.prepare(model(5), batch(), "w4a16").eval()(batch()))


def test_averaged_weights_hold_what_the_trained_ones_hold() -> None:
    qat = tq.prepare(model(), batch(), "w4a16")
    average = torch.optim.swa_utils.AveragedModel(qat)
    optimizer = torch.optim.SGD(qat.parameters(), 0.1)
    for step in range(3):
        qat.train()(batch(step)).sum().backward()
        optimizer.step()
        average.update_parameters(qat)
    averaged: Any = average.module
    assert not quantizer_of(averaged[0]).follows_weight()
    assert torch.equal(quantizer_of(averaged[0]).scale, quantizer_of(qat[0]).scale)
    assert torch.equal(tq.convert(averaged.eval())(batch()), averaged(batch()))


def test_another_width_and_a_switched_on_quantizer_are_searched_for_the_weight_as_it_is() -> None:
    from truequant.fake.control import set_bits

    qat = tq.prepare(model(), batch(), "w4a16")
    quantizer = quantizer_of(qat[0])
    quantizer.quantizing = False
    qat.train()(batch())
    with torch.no_grad():
        qat[0].weight.mul_(4.0)
    quantizer.quantizing = True
    qat(batch())
    assert torch.equal(quantizer.scale, by_hand(qat[0].weight, quantizer.scheme))
    set_bits(qat, 6)
    assert not quantizer.is_held
    qat(batch())
    assert torch.equal(quantizer.scale, by_hand(qat[0].weight, quantizer.scheme))
    assert quantizer.scheme.dtype.bits == 6
