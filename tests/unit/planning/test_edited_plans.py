"""Plans as text, edited by hand, and executed."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import pytest
import torch
from torch import nn

import truequant as tq
from truequant.demo import MODELS
from truequant.errors import PlanError, SchemeError
from truequant.planning import Plan
from truequant.schemes import PerChannel, QuantScheme, int4, int8, uint8


def test_a_plan_is_a_text_and_can_be_edited() -> None:
    x = torch.randn(4, 1, 28, 28)
    model = MODELS["lenet"]()
    decided = tq.plan(model, x)
    assert Plan.from_json(decided.to_json()) == decided
    name = next(q.name for q in decided.quantizers if q.kind == "weight")
    edited = decided.with_scheme(name, QuantScheme(int4, PerChannel(0)))
    assert len(decided.diff(edited)) == 1
    qat = tq.prepare(model, x, Plan.from_json(edited.to_json()))
    tq.calibrate(qat, [x])
    assert dict(tq.quantizers(qat))[name].scheme.qmax == 7
    assert tq.verify(qat, tq.convert(qat.eval()), [x], runtimes=("reference",)).codes_different == 0


def test_an_edited_plan_is_checked() -> None:
    x = torch.randn(4, 1, 28, 28)
    model = MODELS["lenet"]()
    decided = tq.plan(model, x)
    weight = next(q.name for q in decided.quantizers if q.kind == "weight")
    with pytest.raises(PlanError, match="has no quantizer 'nothing'"):
        decided.with_scheme("nothing", QuantScheme(uint8))
    with pytest.raises(SchemeError, match="an edit keeps granularity"):
        decided.with_scheme(weight, QuantScheme(int8))
    with pytest.raises(SchemeError, match="weights are signed"):
        decided.with_scheme(weight, QuantScheme(uint8, PerChannel(0)))
    with pytest.raises(SchemeError, match="keeps the sign"):
        decided.with_scheme("input_0", QuantScheme(int8))
    broken = dataclasses.replace(decided, quantizers=decided.quantizers[1:])
    with pytest.raises(PlanError, match="names what the plan does not hold"):
        tq.prepare(model, x, broken)
    with pytest.raises(PlanError, match="its plan does not fit the model"):
        tq.prepare(MODELS["mlp"](), x, decided)


def test_the_rule_that_won_is_printed() -> None:
    rule = tq.Rule("fc1", weight=QuantScheme(int4, PerChannel(0)))
    text = str(
        tq.plan(
            nn.Sequential(OrderedDict(fc1=nn.Linear(4, 4), fc2=nn.Linear(4, 4))),
            torch.randn(2, 4),
            tq.QConfig().with_rules(rule),
        )
    )
    assert sum(repr(rule) in line for line in text.splitlines()) == 1
