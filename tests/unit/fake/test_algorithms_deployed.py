"""Each algorithm on its whole way to an Int8 model, and what is refused before it starts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import truequant as tq
from truequant import numerics
from truequant.errors import SchemeError
from truequant.schemes import (
    EWGS,
    LSQ,
    PACT,
    TQT,
    TWN,
    DoReFa,
    LSQPlus,
    PerChannel,
    PerTensor,
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


# -- refusals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantScheme(int8, scale=DoReFa()), "odd codes of one bit more"),
        (lambda: QuantScheme(int4, scale=TWN()), "ternary weights are of type int2"),
        (lambda: QuantScheme(uint4, symmetric=False, scale=PACT()), "PACT has zero point 0"),
        (lambda: QuantScheme(int1, rounding=Stochastic()), "has no meaning here"),
        (lambda: QuantScheme(uint4, scale=PACT(), rounding=EWGS()), "has no meaning here"),
        (lambda: QuantScheme(int1, scale=PACT()), "binary weights have no range"),
        (lambda: QuantScheme(int4, scale="lsq"), "scale of a wrong kind"),  # type: ignore[arg-type]
        (lambda: QuantScheme(int4, rounding=0), "rounding of a wrong kind"),  # type: ignore[arg-type]
        (lambda: PACT(alpha=0.0), "PACT: alpha is no level"),
        (lambda: EWGS(-1.0), "EWGS: delta out of range"),
        (lambda: TWN(3.0), "TWN: threshold out of range"),
    ],
)
def test_what_is_not_defined_is_refused_at_once(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        make()


def net(between: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), between or nn.Identity(), nn.Linear(8, 4)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tq.QConfig(weight=QuantScheme(int4, scale=PACT())), "this is a weight"),
        (tq.QConfig(activation=QuantScheme(uint4, scale=PACT())), "'3': PACT clips at 0, and these values may be negative"),
        (tq.QConfig(activation=QuantScheme(int2, scale=TWN())), "is for weights, and this is an activation"),
        (tq.QConfig(activation=QuantScheme(int4, scale=DoReFa())), "DoReFa of a signed type is for weights"),
    ],
)
def test_what_a_runtime_cannot_hold_is_refused_by_the_plan(config: tq.QConfig, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        tq.plan(net(), torch.randn(4, 6), config)


# -- the whole way -----------------------------------------------------------------------------------------------------
CONFIGS = {
    "lsq+": (QuantScheme(int4, PerChannel(0), scale=LSQPlus()), QuantScheme(uint4, symmetric=False, scale=LSQPlus())),
    "pact, dorefa": (QuantScheme(int4, PerChannel(0), scale=DoReFa()), QuantScheme(uint4, scale=PACT())),
    "dorefa": (QuantScheme(int3, scale=DoReFa()), QuantScheme(uint4, scale=DoReFa(reach=4.0))),
    "dorefa as published": (QuantScheme(int2, scale=DoReFa(keep_magnitude=False)), QuantScheme(uint2, scale=LSQ())),
    "dorefa, 1 bit": (QuantScheme(int1, scale=DoReFa()), QuantScheme(uint2, scale=LSQ())),
    "dorefa, 7 bits": (QuantScheme(int7, scale=DoReFa()), QuantScheme(uint8)),
    "tqt": (QuantScheme(int4, PerChannel(0), scale=TQT()), QuantScheme(uint4, scale=TQT())),
    "tqt, a tensor": (QuantScheme(int8, scale=TQT(False)), QuantScheme(uint8, scale=TQT(False))),
    "twn": (QuantScheme(int2, PerChannel(0), scale=TWN()), QuantScheme(uint4, scale=LSQ())),
    "twn, a tensor": (QuantScheme(int2, scale=TWN()), QuantScheme(uint4, scale=LSQ())),
    "ewgs": (QuantScheme(int4, PerChannel(0), scale=LSQ(), rounding=EWGS()), QuantScheme(uint4, scale=LSQ(), rounding=EWGS())),
    "stochastic": (QuantScheme(int4, PerTensor(), rounding=Stochastic()), QuantScheme(uint4, rounding=Stochastic())),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_trained_converted_and_verified(name: str) -> None:
    torch.manual_seed(11)
    w, a = CONFIGS[name]
    x = torch.randn(16, 6)
    qat = tq.prepare(net(nn.ReLU()), x, tq.QConfig(weight=w, activation=a))
    optimizer = torch.optim.SGD(tq.training.parameter_groups(qat), 0.05, momentum=0.9)
    before = copy.deepcopy(qat.state_dict())
    for _ in range(8):
        optimizer.zero_grad()
        qat(x).square().mean().backward()
        optimizer.step()
    moved = [k for k, v in qat.state_dict().items() if k.endswith((".shift", ".offset")) and not torch.equal(v, before[k])]
    learned = [p for _, q in tq.quantizers(qat) for p in q.learned_parameters()]
    assert bool(moved) == bool(learned)
    for _, quantizer in tq.quantizers(qat):
        scale = quantizer.effective_scale()
        assert bool((scale > 0).all())
        if quantizer.scheme.power_of_two and quantizer.is_calibrated:
            assert torch.equal(scale, numerics.power_of_two(scale))
    int8_model = tq.convert(qat.eval())
    report = tq.verify(qat, int8_model, [torch.randn(64, 6) * 2], runtimes=("reference", "onnxruntime"))
    assert report.codes_compared > 0
    assert report.codes_different == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_brings_all_of_it_back(name: str, tmp_path: Any) -> None:
    torch.manual_seed(12)
    w, a = CONFIGS[name]
    x = torch.randn(16, 6)
    qat = tq.prepare(net(nn.ReLU()), x, tq.QConfig(weight=w, activation=a))
    optimizer = torch.optim.SGD(tq.training.parameter_groups(qat), 0.05, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        qat(x).square().mean().backward()
        optimizer.step()
    tq.save_checkpoint(tmp_path / "c.safetensors", model=qat, optimizer=optimizer)
    other = net(nn.ReLU())
    tq.load_checkpoint(tmp_path / "c.safetensors", model=other)
    assert torch.equal(other.eval()(x), qat.eval()(x))
    assert [q.scheme for _, q in tq.quantizers(other)] == [q.scheme for _, q in tq.quantizers(qat)]
