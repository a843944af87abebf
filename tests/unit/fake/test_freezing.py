"""Oscillations are counted as in the paper, codes freeze at their average, and a checkpoint loses none of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import truequant as tq
from truequant import kernels
from truequant.errors import SchemeError
from truequant.fake import WeightQuantizer
from truequant.fake.algorithms.freezing import Oscillation
from truequant.schemes import LSQ, TWN, Freezing, PerChannel, PerTensor, QuantScheme, int1, int2, int4, uint4


def by_hand(rows: list[list[float]], m: float, threshold: float) -> tuple[list[float], list[bool], list[float]]:
    """Nagel et al. 2022, algorithm 1, one weight at a time in plain Python."""
    n = len(rows[0])
    frequency, frozen, codes = [0.0] * n, [False] * n, list(rows[0])
    average, direction = list(rows[0]), [0] * n
    for row in rows[1:]:
        for i, code in enumerate(row):
            move = (code > codes[i]) - (code < codes[i])
            oscillates = move != 0 and move == -direction[i]
            frequency[i] = m * oscillates + (1 - m) * frequency[i]
            average[i] = m * code + (1 - m) * average[i]
            if not frozen[i]:
                codes[i] = code
                if frequency[i] > threshold:
                    frozen[i], codes[i] = True, float(round(average[i]))
            direction[i] = move or direction[i]
    return frequency, frozen, codes


def test_frequencies_and_frozen_codes_are_those_of_the_algorithm() -> None:
    torch.manual_seed(0)
    rows = torch.randint(-2, 3, (60, 12)).float()
    rows[:, 0] = torch.tensor([0.0, 1.0]).repeat(30)  # moves to and fro
    rows[:, 1] = torch.arange(60) // 10  # moves one way
    rows[:, 2] = 3.0
    state = Oscillation((12,), Freezing(start=0.55, momentum=0.1, steps=None))
    for row in rows:
        state.update(row)
    frequency, frozen, codes = by_hand(rows.tolist(), 0.1, 0.55)
    assert torch.allclose(state.frequency, torch.tensor(frequency), atol=1e-6)
    assert state.frozen.tolist() == frozen
    assert state.codes.tolist() == codes
    assert state.frozen[0]
    assert not state.frozen[1]
    assert not state.frozen[2]


def test_the_threshold_falls_along_half_a_cosine() -> None:
    state = Oscillation((1,), Freezing(start=0.1, end=0.02, steps=100))
    found = []
    for step in (0, 50, 100, 500):
        state.steps.fill_(step)
        found.append(float(state.threshold()))
    assert found == pytest.approx([0.1, 0.06, 0.02, 0.02])


CHANNELS = PerChannel(0)


def scheme(granularity: PerChannel | PerTensor = CHANNELS) -> QuantScheme:
    return QuantScheme(int4, granularity, scale=LSQ(), oscillation=Freezing(start=0.05, momentum=0.1))


def test_a_frozen_weight_has_no_gradient_and_its_scale_has() -> None:
    quantizer = WeightQuantizer(scheme(), 2)
    w = torch.tensor([[0.1, 0.7], [0.2, -0.7]], requires_grad=True)
    quantizer.track((2, 2))
    quantizer.initialize(w)
    assert quantizer.oscillation is not None
    quantizer.oscillation.frozen[0, 0] = True
    quantizer.oscillation.codes[0, 0] = 3.0
    quantizer.oscillation.steps.fill_(1)
    y = quantizer(w)
    assert float(y[0, 0].detach()) == pytest.approx(3 * float(quantizer.scale[0]))
    y[0, 0].backward()
    assert float(w.grad.abs().sum()) == 0.0  # type: ignore[union-attr]
    assert quantizer.shift is not None
    assert float(quantizer.shift.grad[0]) != 0.0  # type: ignore[index]
    assert quantizer.codes(w)[0, 0] == 3.0


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def trained(model: nn.Module, steps: int) -> nn.Module:
    """Steps that shake every weight, so that codes do oscillate."""
    torch.manual_seed(1)
    for step in range(steps):
        model(torch.randn(8, 1, 6, 6)).sum().backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "quantizers" not in name and p.dim() > 1:
                    p.add_(0.05 * (-1) ** step)
        model.zero_grad()
    return model


@pytest.mark.parametrize("granularity", [PerChannel(0), PerTensor()])
def test_frozen_codes_are_the_ones_that_ship(granularity: PerChannel | PerTensor) -> None:
    torch.manual_seed(2)
    config = tq.QConfig(weight=scheme(granularity), activation=QuantScheme(uint4, scale=LSQ()))
    qat = tq.prepare(net(), torch.randn(8, 1, 6, 6), config)
    with torch.no_grad():
        qat.get_submodule("1").weight.copy_(torch.tensor([1.0, -1.0, 0.5, -0.5]))  # signs that a tied scale folds in
    trained(qat, 12)
    for _, quantizer in tq.quantizers(qat):
        if isinstance(quantizer, WeightQuantizer):
            assert quantizer.oscillation is not None
            assert bool(quantizer.oscillation.frozen.any())
            assert int(quantizer.oscillation.steps) == 12
    report = tq.verify(qat.eval(), tq.convert(qat), [torch.randn(32, 1, 6, 6)], runtimes=("reference", "onnxruntime"))
    assert report.codes_different == 0
    conv = qat.get_submodule("0")
    quantizer = conv.get_submodule("quantizers.weight")
    frozen = quantizer.oscillation.frozen  # type: ignore[union-attr]
    node = next(n for n in tq.convert(qat).program.nodes if n.output == "0")
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1, 1)
    assert torch.equal((node.weight.float() * sign)[frozen], quantizer.oscillation.codes[frozen])  # type: ignore[union-attr]


def test_evaluation_and_recomputation_count_nothing() -> None:
    torch.manual_seed(3)
    qat = tq.prepare(net(), torch.randn(8, 1, 6, 6), tq.QConfig(weight=scheme()))
    trained(qat, 3)
    state = qat.get_submodule("0.quantizers.weight").oscillation
    qat.eval()(torch.randn(8, 1, 6, 6))
    tq.training.oscillation_dampening(qat)
    assert int(state.steps) == 3  # type: ignore[union-attr, arg-type]
    qat.train()
    qat(torch.randn(8, 1, 6, 6)), qat(torch.randn(8, 1, 6, 6))  # two forwards of one step
    x = torch.utils.checkpoint.checkpoint(qat, torch.randn(8, 1, 6, 6, requires_grad=True), use_reentrant=False)
    before = int(state.steps)  # type: ignore[union-attr, arg-type]
    x.sum().backward()
    assert int(state.steps) == before  # type: ignore[union-attr, arg-type]


def test_a_checkpoint_keeps_frequencies_averages_and_frozen_codes(tmp_path: Path) -> None:
    torch.manual_seed(4)
    qat = trained(tq.prepare(net(), torch.randn(8, 1, 6, 6), tq.QConfig(weight=scheme())), 7)
    tq.save_checkpoint(tmp_path / "c.safetensors", model=qat)
    other = net()
    tq.load_checkpoint(tmp_path / "c.safetensors", model=other)
    ours, theirs = ({k: v for k, v in m.state_dict().items() if "oscillation" in k} for m in (qat, other))
    assert len(ours) == 12
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    half = other.get_submodule("0.quantizers.weight").half().oscillation
    assert half.average.dtype == torch.float32  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "make",
    [
        lambda: QuantScheme(int1, oscillation=Freezing()),
        lambda: QuantScheme(uint4, oscillation=Freezing()),
        lambda: QuantScheme(int2, scale=TWN(), oscillation=Freezing()),
        lambda: Freezing(start=0.1, end=0.2),
        lambda: Freezing(momentum=1.0),
        lambda: Freezing(steps=0),
    ],
)
def test_refusals(make: object) -> None:
    with pytest.raises(SchemeError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("level", kernels.levels())
def test_compiled_kernels_do_not_skip_it(level: str) -> None:
    """A weight that moves to and fro about the middle of two codes freezes, whichever kernels run."""
    quantizer = WeightQuantizer(QuantScheme(int4, PerChannel(0), oscillation=Freezing(start=0.2, end=0.2, momentum=0.3)), 1)
    quantizer.track((1, 2))
    quantizer.initialize(torch.tensor([[7.0, 2.4]]))
    with kernels.using(level):
        for step in range(12):
            quantizer.clock.step += 1
            quantizer(nn.Parameter(torch.tensor([[7.0, 2.4 if step % 2 else 2.6]])))
        assert quantizer.oscillation is not None
        assert quantizer.oscillation.frozen.tolist() == [[False, True]]
        found = {quantizer(nn.Parameter(torch.tensor([[7.0, w]])))[0, 1].item() for w in (2.4, 2.6)}
    assert len(found) == 1
