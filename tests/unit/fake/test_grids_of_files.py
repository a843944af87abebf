"""Weights on the grid of a file's format: what trains, evaluates, and ships has float16 scales and the full range of codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant import kernels, numerics
from truequant.errors import SchemeError
from truequant.fake import WeightQuantizer
from truequant.planning import config_from_json, config_to_json
from truequant.schemes import FloatScale, MinMax, PerGroup, ScaleRule, config_from_table, int1, int4, int8, uint4

FULL = tq.QuantScheme(int4, PerGroup(32), scale_dtype="float16", full_range=True)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def held(scale: Tensor, dtype: str) -> bool:
    return torch.equal(scale.to(DTYPES[dtype]).float(), scale)


@pytest.mark.parametrize("level", [kernels.level(), "reference"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "rule", [FloatScale(), tq.scales.LSQ(), tq.scales.LSQPlus(), tq.scales.TQT()], ids=lambda rule: rule.label
)
@pytest.mark.parametrize("observer", [MinMax(), tq.ranges.MSE()], ids=lambda observer: type(observer).__name__)
def test_what_is_trained_is_what_is_held(
    rule: ScaleRule, dtype: str, observer: tq.ranges.MinMax | tq.ranges.MSE, level: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64)
    scheme = FULL.with_(scale=rule, scale_dtype=dtype, observer=observer)
    config = replace(tq.QConfig.preset("w4a16"), weight=scheme)
    with kernels.using(level):
        qat = tq.prepare(nn.Sequential(nn.Linear(64, 32), nn.Tanh()), x, config)
        optimizer = torch.optim.SGD(qat.parameters(), lr=0.1)
        before = qat[0].weight.detach().clone()
        for _ in range(3):
            loss = qat.train()(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert not torch.equal(qat[0].weight, before)
        shipped = tq.convert(qat.eval())
        trained = qat.train()(x)
        assert torch.equal(shipped(x), qat.eval()(x))
    node = shipped.program.nodes[0]
    assert held(node.weight_scale, dtype)
    assert -8 <= int(node.weight.min()) <= int(node.weight.max()) <= 7
    values = (node.weight.reshape(32, 2, 32) * node.weight_scale[..., None]).reshape(32, 64)
    if rule.learned or isinstance(observer, tq.ranges.MSE):  # a range that is read moves with the weight
        assert torch.allclose(trained, torch.tanh(x @ values.T + qat[0].bias), atol=1e-5)


def test_the_lowest_code_is_used() -> None:
    weight = torch.tensor([[-8.0, 7.0, 1.0, -0.4]])
    quantizer = WeightQuantizer(tq.QuantScheme(int4, PerGroup(4), observer=MinMax(), full_range=True), (1, 1))
    quantizer.initialize(weight)
    assert quantizer.codes(weight).tolist() == [[-8.0, 7.0, 1.0, 0.0]]
    assert quantizer.scale_of(weight).item() == 1.0


@pytest.mark.parametrize(("dtype", "least", "most"), [("float16", 2.0**-24, 2.0**15), ("bfloat16", 2.0**-64, 2.0**64)])
def test_scales_are_rounded_half_to_even_within_bounds(dtype: str, least: float, most: float) -> None:
    scheme = FULL.with_(scale_dtype=dtype)
    one = 1.0 + torch.finfo(DTYPES[dtype]).eps
    between = (one + 1.0) / 2
    given = torch.tensor([0.0, 1e-30, 1.0, between, one, 1e30])
    low = max(least, float(torch.tensor(1e-30).clamp(min=least).to(DTYPES[dtype])))
    assert numerics.stored_scale(given, scheme).tolist() == [least, low, 1.0, 1.0, one, min(most, 2.0**64)]


def test_the_gradient_of_a_learned_scale_passes_its_rounding() -> None:
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for dtype in ("float16", "float32"):
        quantizer = WeightQuantizer(FULL.with_(scale=tq.scales.LSQ(), scale_dtype=dtype), (2, 2)).train()
        quantizer.hold(torch.full((2, 2), 0.25))  # float16 holds it: both have the same values, and so the same gradient
        quantizer(weight).square().sum().backward()
        found.append(quantizer.shift.grad)
    assert torch.equal(*found)
    assert bool(found[0].abs().min() > 0)


def test_configs_hold_both_and_old_ones_mean_what_they_meant() -> None:
    config = tq.QConfig.preset("w4a16-gguf")
    assert config_from_json(config_to_json(config)) == config
    table = {"dtype": "int4", "granularity": {"kind": "per-group", "size": 32}, "scale_dtype": "float16", "full_range": True}
    assert config_from_table({"weight": table}, "here").weight == FULL
    told = config_to_json(tq.QConfig.preset("w4a16"))
    for field in ("scale_dtype", "full_range"):
        del told["weight"][field]
    assert config_from_json(told) == tq.QConfig.preset("w4a16")
    assert str(FULL) == "int4 group 32 full range float16 scales"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SchemeError, match="unknown scale_dtype") as error:
        tq.QuantScheme(int4, scale_dtype="float8")
    assert error.value.expected == "'float32', 'float16', 'bfloat16'"
    for dtype, rule in ((uint4, FloatScale()), (int1, FloatScale()), (int4, tq.scales.DoReFa())):
        with pytest.raises(SchemeError, match="full_range is for signed, symmetric codes that are the nearest ones"):
            tq.QuantScheme(dtype, scale=rule, full_range=True)
    with pytest.raises(SchemeError, match="full_range is for signed"):
        tq.QuantScheme(int4, symmetric=False, full_range=True)
    model, x = nn.Sequential(nn.Linear(32, 32)), torch.randn(2, 32)
    with pytest.raises(SchemeError, match="full_range and scale_dtype are for linear layers whose input is left in float"):
        tq.plan(model, x, tq.QConfig(weight=tq.QuantScheme(int8, full_range=True)))
    with pytest.raises(SchemeError, match="full_range and scale_dtype are for weights, and this is an activation"):
        tq.plan(
            model,
            x,
            tq.QConfig(
                activation=tq.QuantScheme(int8, scale_dtype="float16"), input=tq.QuantScheme(int8, scale_dtype="float16")
            ),
        )
    dynamic = tq.QuantScheme(int8, observer=tq.ranges.Dynamic(), full_range=True)
    with pytest.raises(SchemeError, match="tokens cannot be quantized at run time in this way"):
        tq.plan(model, x, replace(tq.QConfig.preset("w8a8-dynamic"), activation=dynamic, input=dynamic, output=None))
