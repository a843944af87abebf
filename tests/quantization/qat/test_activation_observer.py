"""Area 7: `ActivationObserver` finds the range that its strategy promises, whatever passes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from truequant import ActivationObserver, numerics
from truequant.errors import ArgumentError
from truequant.schemes import (
    MSE,
    Dynamic,
    Entropy,
    Histogram,
    MinMax,
    MovingAverage,
    Observation,
    Percentile,
    PerChannel,
    QuantScheme,
    int4,
    int8,
    uint2,
    uint4,
    uint8,
)

STRATEGIES: dict[str, Observation] = {
    "min-max": MinMax(), "moving average": MovingAverage(), "histogram": Histogram(), "percentile": Percentile(99.9),
    "mse": MSE(), "entropy": Entropy(),
}  # fmt: skip
HISTOGRAMS = ("histogram", "percentile", "mse", "entropy")


def observed(scheme: QuantScheme, *batches: Tensor, channels: int | None = None) -> ActivationObserver:
    observer = ActivationObserver(scheme, channels)
    for x in batches:
        observer.observe(x)
        observer.commit()
    return observer


def of(name: str, dtype: object = uint8) -> QuantScheme:
    return QuantScheme(dtype, observer=STRATEGIES[name])  # type: ignore[arg-type]


# -- each strategy against a brute-force reference -------------------------------------------------------------------------
def test_min_max() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(100) * k for k in (1, 3, 2)]
    low, high = observed(of("min-max"), *batches).range()
    assert (low, high) == (min(float(b.min()) for b in batches), max(float(b.max()) for b in batches))


def test_moving_average() -> None:
    torch.manual_seed(1)
    batches = [torch.randn(100) * k for k in (1, 3, 2)]
    expected = [float(batches[0].min()), float(batches[0].max())]
    for b in batches[1:]:
        expected = [0.9 * e + 0.1 * float(v) for e, v in zip(expected, (b.min(), b.max()), strict=True)]
    low, high = observed(of("moving average"), *batches).range()
    assert [float(low), float(high)] == pytest.approx(expected)


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9])
@pytest.mark.parametrize("sided", ["two", "one"])
def test_percentile(percent: float, sided: str) -> None:
    """The tails are cut evenly, or the one tail that there is; exact to the width of a bin."""
    torch.manual_seed(2)
    x = torch.randn(200_000)
    x = x.abs() if sided == "one" else x
    observer = observed(QuantScheme(uint8, observer=Percentile(percent)), x)
    low, high = observer.range()
    width = float(torch.ldexp(torch.tensor(1.0), observer.exponent[0]))
    cut = (100 - percent) / 100 / (1 if sided == "one" else 2)
    ordered = x.sort().values
    assert float(high) == pytest.approx(float(ordered[int((1 - cut) * (len(x) - 1))]), abs=2 * width)
    assert float(low) == (0.0 if sided == "one" else pytest.approx(float(ordered[int(cut * (len(x) - 1))]), abs=2 * width))


def error(x: Tensor, low: float, high: float, scheme: QuantScheme) -> float:
    scale, zero = numerics.scale_and_zero_point(torch.tensor(low), torch.tensor(high), scheme)
    y = numerics.dequantize(numerics.quantize(x, scale, zero, scheme.qmin, scheme.qmax), scale, zero)
    return float((y - x).double().square().mean())


@pytest.mark.parametrize("name", ["mse", "histogram"])
@pytest.mark.parametrize("dtype", [uint2, uint4, int4, uint8])
@pytest.mark.parametrize("shape", ["normal", "relu", "heavy tail"])
def test_least_squared_error(name: str, dtype: object, shape: str) -> None:
    """Within 2 % of the best of 100 x 100 ranges tried on the values themselves."""
    torch.manual_seed(3)
    x = {"normal": torch.randn(5000), "relu": torch.randn(5000).relu(), "heavy tail": torch.randn(5000) ** 3}[shape]
    scheme = of(name, dtype)
    low, high = observed(scheme, x).range()
    bottom, top = float(x.min().clamp(max=0)), float(x.max())
    fractions = [k / 40 for k in range(1, 41)]
    lows = fractions if not scheme.is_symmetric and bottom < 0 else [1.0]
    pairs = [(f * bottom, g * top) for f in lows for g in fractions]
    if scheme.is_symmetric:
        pairs = [(-g * max(-bottom, top), g * max(-bottom, top)) for g in fractions]
    best = min(error(x, a, b, scheme) for a, b in pairs)
    assert error(x, float(low), float(high), scheme) <= 1.02 * best + 1e-9


def test_entropy_cuts_a_far_outlier_and_keeps_a_uniform_range() -> None:
    torch.manual_seed(4)
    uniform = torch.rand(100_000)
    _, high = observed(of("entropy"), uniform).range()
    assert float(high) == pytest.approx(1.0, abs=0.02)
    _, high = observed(of("entropy"), torch.cat([torch.randn(100_000).abs(), torch.tensor([1000.0])])).range()
    assert float(high) < 500


# -- hard inputs -----------------------------------------------------------------------------------------------------------
HARD = {
    "constant": torch.full((64,), 3.7),
    "negative constant": torch.full((64,), -3.7),
    "zero": torch.zeros(64),
    "one-sided": torch.linspace(5, 6, 64),
    "denormal": torch.full((64,), 1e-42),
    "huge": torch.linspace(-3e38, 3e38, 64),
    "one element": torch.tensor(2.0),
    "mixed": torch.tensor([1e-30, 1e30]),
}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("dtype", [uint8, int8])
def test_scales_are_sane_for_any_input(name: str, kind: str, dtype: object) -> None:
    """Positive, finite, normal; real zero has a code; zero points are integers in range."""
    observer = observed(of(name, dtype), HARD[kind])
    scale, zero = observer.qparams()
    scheme = observer.scheme
    assert numerics.MIN_SCALE <= float(scale) <= numerics.MAX_SCALE
    assert float(zero) == int(zero)
    assert scheme.qmin <= int(zero) <= scheme.qmax
    assert float(numerics.quantize(torch.tensor(0.0), scale, zero, scheme.qmin, scheme.qmax)) == float(zero)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_constant_keeps_its_value(name: str) -> None:
    observer = observed(of(name), torch.full((256,), 3.7))
    scale, zero = observer.qparams()
    y = numerics.dequantize(numerics.quantize(torch.tensor(3.7), scale, zero, 0, 255), scale, zero)
    assert float(y) == pytest.approx(3.7, rel=0.01)


@pytest.mark.parametrize("name", STRATEGIES)
def test_non_finite_values_never_enter_the_state(name: str) -> None:
    clean, dirty = torch.linspace(-0.25, 0.5, 100), torch.tensor([math.nan, math.inf, -math.inf])
    observer = observed(of(name), clean, dirty)
    reference = observed(of(name), clean)
    assert all(bool(torch.isfinite(v.float()).all()) for v in observer.range())
    if name != "moving average":
        assert [float(v) for v in observer.range()] == pytest.approx([float(v) for v in reference.range()], rel=1e-5)


def test_a_range_of_each_token_is_not_observed() -> None:
    with pytest.raises(ArgumentError, match="a range found anew for each token is not observed"):
        ActivationObserver(QuantScheme(int8, observer=Dynamic()))


def test_empty_batches_change_nothing() -> None:
    for name in STRATEGIES:
        observer = observed(of(name), torch.linspace(-1, 2, 50))
        before = {k: v.clone() for k, v in observer.state_dict().items()}
        observer.observe(torch.empty(0, 3))
        observer.commit()
        assert all(torch.equal(v, before[k]) for k, v in observer.state_dict().items()), name


# -- merging, resetting, state ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", HISTOGRAMS)
def test_the_histogram_of_parts_is_the_histogram_of_the_whole(name: str) -> None:
    """In any order, exactly: widths of bins nest."""
    torch.manual_seed(5)
    parts = [torch.randn(500) * scale for scale in (0.01, 10.0, 1.0, 300.0)]
    whole = observed(of(name), torch.cat(parts))
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        merged = observed(of(name), *(parts[i] for i in order))
        assert torch.equal(merged.counts, whole.counts)
        assert torch.equal(merged.exponent, whole.exponent)
        assert [float(v) for v in merged.range()] == [float(v) for v in whole.range()]
    assert int(whole.counts.sum()) == 2000


@pytest.mark.parametrize("name", ["min-max", "moving average"])
def test_merging_extremes_is_observing(name: str) -> None:
    x = torch.randn(50)
    ours, theirs = ActivationObserver(of(name)), ActivationObserver(of(name))
    ours.observe(x)
    theirs.merge(x.min(), x.max())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert ours.minmax_only


@pytest.mark.parametrize("name", STRATEGIES)
def test_observing_takes_effect_at_the_commit(name: str) -> None:
    observer = observed(of(name), torch.tensor([0.0, 1.0]))
    before = [v.clone() for v in (observer.minimum, observer.maximum, observer.updates)]
    observer.observe(torch.tensor([0.0, 9.0]))
    assert all(torch.equal(a, b) for a, b in zip(before, (observer.minimum, observer.maximum, observer.updates), strict=True))
    observer.commit()
    assert float(observer.maximum) > 1.0
    assert int(observer.updates) == 2


@pytest.mark.parametrize("name", STRATEGIES)
def test_reset_forgets_everything(name: str) -> None:
    observer = observed(of(name), 100 * torch.randn(50))
    observer.reset()
    fresh = ActivationObserver(of(name))
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in observer.state_dict().items())


@pytest.mark.parametrize("name", STRATEGIES)
def test_forward_observes_in_training_only(name: str) -> None:
    observer = ActivationObserver(of(name)).eval()
    x = torch.randn(20)
    before = {k: v.clone() for k, v in observer.state_dict().items()}
    assert observer(x) is x
    assert all(torch.equal(v, before[k]) for k, v in observer.state_dict().items())
    observer.train()
    assert observer(x) is x
    observer.commit()
    assert int(observer.updates) == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_state_has_its_final_shape_and_precision(name: str) -> None:
    scheme = QuantScheme(int8, PerChannel(1), observer=STRATEGIES[name])
    trained = observed(scheme, torch.randn(16, 3, 4), channels=3)
    fresh = ActivationObserver(scheme, 3)
    fresh.load_state_dict(trained.state_dict())
    for a, b in zip(fresh.range(), trained.range(), strict=True):
        assert torch.equal(a, b)
        assert a.shape == (3,)
    assert fresh.half().minimum.dtype == torch.float32
    with pytest.raises(ArgumentError, match="needs to know how many scales there are"):
        ActivationObserver(scheme)


@pytest.mark.parametrize("name", STRATEGIES)
def test_channels_are_observed_apart(name: str) -> None:
    torch.manual_seed(6)
    x = torch.randn(64, 3, 5) * torch.tensor([0.1, 1.0, 10.0])[:, None]
    together = observed(QuantScheme(int8, PerChannel(1), observer=STRATEGIES[name]), x, channels=3)
    for i in range(3):
        alone = observed(of(name, int8), x[:, i])
        for a, b in zip(together.range(), alone.range(), strict=True):
            assert float(a[i]) == pytest.approx(float(b), rel=0.02)


@pytest.mark.parametrize("name", STRATEGIES)
def test_qparams_follow_the_range(name: str) -> None:
    observer = observed(of(name), torch.randn(100))
    expected = numerics.scale_and_zero_point(*observer.range(), observer.scheme)
    assert all(torch.equal(a, b) for a, b in zip(observer.qparams(), expected, strict=True))
