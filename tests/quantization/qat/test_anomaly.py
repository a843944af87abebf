"""Activations that are not finite: named where they come up first, and never part of a range."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import truequant as tq
from truequant.errors import AnomalyError, StateError
from truequant.schemes import (
    MSE,
    Entropy,
    Fusions,
    Histogram,
    MinMax,
    MovingAverage,
    Observation,
    Percentile,
    QuantScheme,
    uint8,
)

OBSERVERS = (MinMax(), MovingAverage(), Histogram(256), Percentile(99.9, 256), MSE(256, 20), Entropy(256))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.more, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        return self.head((x + self.more(x)).mean((2, 3)))


def made(fusions: Fusions | None = None) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    return tq.prepare(Net(), x, tq.QConfig(fusions=fusions or Fusions())).train(), x


def poisoned(value: float, *, at: str = "more") -> nn.Module:
    qat, x = made()
    qat(x)
    with torch.no_grad():
        qat.get_submodule(at).weight[0, 0] = value
    return qat


def test_the_first_site_is_named() -> None:
    qat, x = poisoned(math.nan), made()[1]
    with (
        pytest.raises(AnomalyError, match="'more.output': activations that are not finite reached it") as caught,
        tq.training.detect_anomaly(qat),
    ):
        qat(x)
    assert str(caught.value.got).startswith("144 NaN, 0 infinite of 576 values in step 2; ")
    with pytest.raises(AnomalyError, match="'input_0'"), tq.training.detect_anomaly(qat):
        qat(torch.full_like(x, math.inf))


@pytest.mark.parametrize(("value", "told"), [(math.nan, "1 NaN, 0 infinite"), (-math.inf, "0 NaN, 1 infinite")])
def test_one_value_is_enough(value: float, told: str) -> None:
    qat, x = made()
    x[1, 2, 3, 4] = value
    with pytest.raises(AnomalyError) as caught, tq.training.detect_anomaly(qat):
        qat(x)
    assert str(caught.value.got).startswith(f"{told} of 432 values in step 1")


def test_what_it_does_not_look_at() -> None:
    """Evaluation, other models, and what comes when the context is over."""
    qat, x = made()
    with tq.training.detect_anomaly(qat) as same:
        assert same is qat
        qat(x)
        qat.eval()(x * math.nan)
    qat.train()(x * math.nan)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in qat.modules())
    with pytest.raises(StateError, match="not prepared"), tq.training.detect_anomaly(Net()):
        pass
    qat.compile(backend="eager")
    with pytest.raises(StateError, match="detect_anomaly: the model is compiled"), tq.training.detect_anomaly(qat):
        pass


def test_looking_changes_no_bit() -> None:
    """With and without it the same training, but for BatchNorm's fused pass, which sums in an order of its own."""
    (looked, x), (plain, _) = made(Fusions(norm=False)), made(Fusions(norm=False))
    with tq.training.detect_anomaly(looked):
        for _ in range(3):
            looked(x).square().mean().backward()
    for _ in range(3):
        plain(x).square().mean().backward()
    for a, b in zip(looked.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in looked.state_dict().items())


def test_training_goes_on_behind_the_error() -> None:
    """A batch that is passed over leaves ranges as they were: what comes next is what had come without it."""
    (qat, x), (other, _) = made(), made()
    qat(x)
    before = copy.deepcopy(qat.state_dict())
    with pytest.raises(AnomalyError), tq.training.detect_anomaly(qat):
        qat(x * math.nan)
    for name, value in qat.state_dict().items():
        if name.endswith((".minimum", ".maximum", ".scale")):
            assert bool(torch.isfinite(value).all()), name
    assert set(before) == set(qat.state_dict())
    other(x)
    for model in (qat, other):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()  # which are PyTorch's own, and keep a NaN
        model(2 * x)
        model.eval()
    scales = [{n: q.scale for n, q in tq.quantizers(model)} for model in (qat, other)]
    assert all(torch.equal(scales[0][n], scales[1][n]) for n in scales[0])


class Asked(TorchDispatchMode):
    """Counts the values that the host asks for."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.values += func._schema.name in ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal")
        return func(*args, **(kwargs or {}))


def test_the_host_asks_for_nothing_while_it_counts() -> None:
    qat, x = made()
    qat(x)
    with tq.training.detect_anomaly(qat), Asked() as asked:
        qat(x)
    assert asked.values == 0


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda observer: type(observer).__name__)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_observer_is_poisoned(observer: Observation, bad: float) -> None:
    """Batches in which nothing is finite leave no trace; neither do single values, but for the end that they hide."""
    scheme = QuantScheme(uint8, observer=observer)
    torch.manual_seed(1)
    good = [torch.randn(64) * size for size in (1.0, 2.0, 0.5)]
    clean, dirty, spotted = (tq.FakeQuantize(scheme) for _ in range(3))
    for x in good:
        clean(x)
        dirty(x)
        dirty(torch.full_like(x, bad))
        spotted(x)
        spotted(torch.cat([x, torch.tensor([bad])]))
    for quantizer in (clean, dirty, spotted):
        quantizer.eval()
    assert torch.equal(clean.scale, dirty.scale)
    assert torch.equal(clean.zero_point, dirty.zero_point)
    low, high = (end.clone() for end in spotted.observer.range())
    assert bool(torch.isfinite(low) & torch.isfinite(high))
    assert bool((low < 0) & (high > 0))
    after = good[1] * 4
    spotted.train()(after)
    assert bool(spotted.eval().observer.range()[1] > high)  # it still follows
