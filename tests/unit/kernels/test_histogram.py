"""Compiled quantizers that count: every level counts what the observer counts, chooses its range and quantizes as it does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.unit.kernels.levels import LENGTHS, LEVELS, awkward, same
from tests.unit.kernels.test_activations import LAYOUTS, assert_same, steps
from tests.unit.kernels.test_passes import CLAMPS, prepared, train
from truequant import kernels
from truequant.fake import FakeQuantize
from truequant.observers import ActivationObserver, histogram
from truequant.schemes import (
    MSE,
    Entropy,
    Histogram,
    Observation,
    Percentile,
    PerChannel,
    QuantScheme,
    int8,
    uint4,
    uint8,
    uint16,
)

OBSERVERS: list[Observation] = [
    Percentile(), Percentile(90.0, 16), Percentile(100.0, 777), Percentile(51.0, 65536), MSE(64, 8), Histogram(333),
    Entropy(256),
]  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("observer", OBSERVERS, ids=str)
def test_several_steps_while_ranges_grow(level: str, dtype: torch.dtype, observer: Observation) -> None:
    scheme = QuantScheme(uint8, observer=observer)
    sizes = (1.0, 0.3, 40.0, 2.0, 3000.0, 1.0)
    assert_same(level, lambda: steps(scheme, [(torch.randn(3, 701) * k).to(dtype) for k in sizes]))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_length_and_awkward_values(level: str, dtype: torch.dtype) -> None:
    scheme = QuantScheme(uint8, observer=Percentile(99.0, 64))

    def run() -> list[Tensor]:
        return [v for n in LENGTHS for v in steps(scheme, [torch.randn(50).to(dtype), awkward(n, 0.1, dtype)] * 2)]

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(level: str, layout: str) -> None:
    scheme = QuantScheme(int8, symmetric=False, observer=Percentile(99.0, 128))

    def run() -> list[Tensor]:
        return steps(scheme, [LAYOUTS[layout](torch.randn(3, 6, 13, 10) * k) for k in (1, 5)])

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("values", [
    (0.0, -0.0), (1e-45, -1e-45, 0.0), (1e-42, 3e38), (-1e-42, 3e38), (3.4e38, -3.4e38), (math.inf, -math.inf), (math.nan,),
    (16.0, -16.0), (15.999999, -16.0), (2.0**-140, -(2.0**-141)), (math.inf, 5.0), (1e-40, -1e-38, 1e-30),
], ids=str)  # fmt: skip
def test_counts_of_single_values(level: str, values: tuple[float, ...]) -> None:
    """Denormals of both signs, ends of bins, what is not finite: each for itself, and after others."""

    def run() -> list[Tensor]:
        found = []
        for before in ((), (1.0,), (1e30,)):
            quantizer = FakeQuantize(QuantScheme(uint8, observer=Percentile(100.0, 16)))
            for batch in (before, values, values[:1], (-2.5, 0.5)):
                if batch:
                    quantizer(torch.tensor(batch))
            found += [quantizer.observer.counts.clone(), quantizer.observer.exponent.clone()]
        return found

    assert_same(level, run)


@pytest.mark.parametrize("level", LEVELS)
def test_counts_by_integer_arithmetic(level: str) -> None:
    """Against bins found in exact arithmetic, not by the observer."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(5000) * 10.0**k for k in range(-40, 30, 7)])
    with kernels.using(level):
        quantizer = FakeQuantize(QuantScheme(uint8, observer=Percentile(100.0, 512)))
        quantizer(x)
    exponent = int(quantizer.observer.exponent)
    expected = [0] * 1024
    for value in x.tolist():
        top, bottom = value.as_integer_ratio()
        expected[(top << max(-exponent, 0)) // (bottom << max(exponent, 0)) + 512] += 1
    assert quantizer.observer.counts[0].tolist() == expected
    reach = max(abs(v) for v in x.tolist())
    assert 512 * 2.0 ** (exponent - 1) <= reach < 512 * 2.0**exponent


@pytest.mark.alone
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bins", [64, 4096, 5000])
def test_threads_do_not_matter(level: str, bins: int) -> None:
    """Each thread widens its own bins: the largest value may lie in the part of any."""
    torch.manual_seed(0)
    x = torch.randn(300_000)
    x[250_000], x[7] = 900.0, -70.0

    def run(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        try:
            return steps(QuantScheme(uint8, observer=Percentile(99.9, bins)), [x, x * 2, x.flip(0) * 5])
        finally:
            torch.set_num_threads(before)

    with kernels.using("reference"):
        expected = run(1)
    with kernels.using(level):
        for threads in (1, 2, 3):
            assert all(same(a, b) for a, b in zip(expected, run(threads), strict=True)), threads


@pytest.mark.parametrize("level", LEVELS)
def test_calibration_counts_by_the_kernel(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for learned scales, whose first range comes from a histogram."""
    x = torch.randn(4, 6)
    config = tq.QConfig(activation=QuantScheme(uint4, observer=MSE(128, 16), scale=tq.scales.LSQ()))

    def run() -> list[Tensor]:
        model = tq.prepare(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), x, config)
        tq.calibrate(model, [torch.randn(4, 6) * k for k in (1, 9, 2)])
        return [v.clone().reshape(-1).double() for k, v in model.state_dict().items() if "observer" in k or "scale" in k]

    assert_same(level, run)
    monkeypatch.setattr(histogram, "count", lambda *_: pytest.fail("counted by torch's ops"))
    with kernels.using(level):
        run()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("observer", [Percentile(99.0, 128), MSE(64, 8)], ids=str)
def test_a_model_trains_to_the_same_bits(level: str, observer: Observation) -> None:
    """With the passes that add, clip and quantize; those of a BatchNorm add in another order, see below."""
    activation = QuantScheme(uint8, observer=observer)
    assert_same(level, lambda: train(prepared(CLAMPS, activation=activation)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_levels_agree_on_what_follows_a_norm(channels_last: bool) -> None:
    def shape(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if channels_last else x

    results = []
    for level in LEVELS:
        with kernels.using(level):
            model = prepared(tq.Fusions(), activation=QuantScheme(uint8, observer=Percentile(99.0, 128)))
            results.append(train(model, shape=shape))
    for other in results[1:]:
        assert all(same(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("clip", [kernels.NO_CLIP, (kernels.RELU, 0.0, 0.0), (kernels.HARDTANH, -0.5, 1.5)], ids=str)
def test_a_norm_counts_what_it_quantizes(level: str, channels_last: bool, clip: kernels.Clip) -> None:
    """Its grid of 2^16 codes is so fine that bins of the quantized values are those of the values, but at their edges."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 61, 50) * 3 + 1
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    gamma, beta = torch.rand(5) + 0.5, torch.randn(5)
    scheme = QuantScheme(uint16, observer=Percentile(100.0, 16))
    quantizer, kernel = FakeQuantize(scheme), kernels.compiled()
    assert kernel is not None
    found = []
    with kernels.using(level):
        for looks in (True, False):
            arguments = (x, gamma, beta, None, None, 1e-5, 0.1, looks, quantizer._buffers, quantizer.observer._buffers)
            found.append(kernel.fake_quantize_norm(*arguments, quantizer.compiled_scheme, not looks, *clip))
    assert found[0] is None
    normed = F.batch_norm(x, None, None, gamma, beta, True)
    normed = normed if clip == kernels.NO_CLIP else F.relu(normed) if clip[0] == kernels.RELU else F.hardtanh(normed, *clip[1:])
    assert (found[1] - normed).abs().max() < 2e-4
    observer = ActivationObserver(scheme)
    observer.observe(normed)
    assert torch.equal(observer.exponent, quantizer.observer.exponent)
    assert int(quantizer.observer.counts.sum()) == 2 * x.numel()
    assert int((quantizer.observer.counts - 2 * observer.counts).abs().sum()) <= 8


def test_what_a_step_sees_counts_in_the_next() -> None:
    quantizer = FakeQuantize(QuantScheme(uint8, observer=Percentile(100.0)))
    quantizer(torch.linspace(0, 1, 100))
    scale = float(quantizer.scale)
    y = quantizer(torch.linspace(0, 10, 100))
    assert float(quantizer.scale) == scale
    assert float(y.max()) <= 1.01
    assert float(quantizer(torch.linspace(0, 1, 100)).max()) == pytest.approx(1.0, abs=0.05)
    assert float(quantizer(torch.tensor([10.0])).max()) == pytest.approx(10.0, abs=0.05)


@pytest.mark.parametrize("level", LEVELS)
def test_a_scale_a_channel_counts_by_the_observer(level: str) -> None:
    def run() -> list[Tensor]:
        quantizer = FakeQuantize(QuantScheme(uint8, PerChannel(1), observer=Percentile(99.0, 64)), 5)
        return [quantizer(torch.randn(3, 5, 4)) for _ in range(3)] + [quantizer.observer.counts.clone()]

    assert_same(level, run)


@pytest.mark.parametrize("break_", [
    lambda b: b.update(counts=b["counts"].int()),
    lambda b: b.update(counts=b["counts"][:, ::2]),
    lambda b: b.update(exponent=torch.zeros(2, dtype=torch.int64)),
    lambda b: b.update(minimum=b["minimum"].double()),
])  # fmt: skip
def test_buffers_that_no_kernel_can_use(break_: Callable[[dict[str, Tensor]], None]) -> None:
    observer = ActivationObserver(QuantScheme(uint8, observer=Percentile(99.0, 64)))
    buffers = dict(observer._buffers)
    break_(buffers)  # type: ignore[arg-type]
    kernel = kernels.compiled()
    assert kernel is not None
    assert kernel.observe(torch.randn(9), buffers) is NotImplemented
    assert int(observer.counts.sum()) == 0


def test_a_wider_grid_of_a_schedule_is_the_kernels_too() -> None:
    """A schedule trains with 8 bits before it narrows to 4: compiled quantizers follow."""
    found = []
    for level in kernels.levels():
        with kernels.using(level):
            torch.manual_seed(0)
            quantizer = FakeQuantize(QuantScheme(uint4))
            quantizer.set_bits(8)
            quantizer(torch.randn(1000))
            found.append(quantizer(torch.randn(1000)))
    assert found[0].unique().numel() > 100
    assert all(same(found[0], y) for y in found)
