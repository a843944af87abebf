"""Configs and plans to JSON and back: every preset, every kind of selector, and what a text may not say."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truequant as tq
from tests.training_runs import EXAMPLE, Net
from truequant.errors import FileError, SchemeError
from truequant.files import dumps, loads
from truequant.planning import check_plan, config_from_json, config_to_json, plan_from_json, plan_to_json
from truequant.schemes import (
    LSQ,
    MSE,
    PORTABLE,
    PRESETS,
    Entropy,
    Histogram,
    MinMax,
    MovingAverage,
    Percentile,
    PerChannel,
    PerGroup,
    PowerOfTwoScale,
    QConfig,
    QuantScheme,
    Rule,
    int4,
    int8,
    uint4,
    uint8,
)  # fmt: skip

FUNCTIONS: list[Callable[..., Any]] = [
    torch.add, torch.cat, torch.matmul, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.view, F.relu, F.linear, F.conv2d,
    F.max_pool2d, F.dropout, operator.add,
]  # fmt: skip


def through(config: QConfig) -> QConfig:
    return config_from_json(loads(dumps(config_to_json(config))))


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    assert through(PRESETS[name]) == PRESETS[name]


@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme(uint8, observer=o)
        for o in (MinMax(), MovingAverage(0.5), MovingAverage(1), Histogram(64), Percentile(99.5), MSE(128, 9), Entropy())
    ]
    + [
        QuantScheme(int4, PerChannel(1), gradient="identity"), QuantScheme(int8, PerGroup(32), symmetric=False),
        QuantScheme(uint4, scale=LSQ(0.1)), QuantScheme(uint8, symmetric=True, scale=PowerOfTwoScale()),
        QuantScheme(uint4, scale=LSQ(float("inf"))),
    ],
    ids=repr,
)  # fmt: skip
def test_schemes(scheme: QuantScheme) -> None:
    config = QConfig(activation=scheme, output=None, target=PORTABLE)
    assert through(config) == config
    assert repr(through(config)) == repr(config)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)  # `repr` has addresses: workers would disagree
def test_rules_that_select_a_function(function: Callable[..., Any]) -> None:
    rule = through(QConfig().with_rules(Rule(function, None))).rules[0]
    assert rule.select is function


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d, Net, dict])
def test_rules_that_select_a_type(kind: type) -> None:
    assert through(QConfig().with_rules(Rule(kind, None))).rules[0].select is kind


@pytest.mark.parametrize("flags", [0, re.IGNORECASE, re.IGNORECASE | re.VERBOSE, re.ASCII])
def test_rules_that_select_by_pattern(flags: int) -> None:
    config = QConfig().with_rules(Rule(re.compile(r"layer\d+\..*", flags), weight=QuantScheme(int4, PerChannel(0))))
    assert through(config) == config


def test_what_a_rule_leaves_out_stays_left_out_and_none_stays_none() -> None:
    rules = Rule("a.**", input=None), Rule("b", None), Rule("c.add_0", output=QuantScheme(uint4)), Rule("d", None, weight=None)
    assert through(QConfig().with_rules(*rules)).rules == rules


@pytest.mark.parametrize("preset", ["w8a8", "w8a8-per-tensor", "w4a4", "w1a1"])
def test_plans(preset: str) -> None:
    config = QConfig.preset(preset).with_rules(Rule("head", None), Rule(nn.Conv2d, output=QuantScheme(uint8)))
    plan = tq.plan(Net(), EXAMPLE, config)
    again = plan_from_json(loads(dumps(plan_to_json(plan))))
    assert again == plan
    assert str(again) == str(plan)
    assert hash(again) == hash(plan)
    check_plan(again, "plan")


def test_a_renamed_field_keeps_its_name_in_texts() -> None:
    text = plan_to_json(tq.plan(Net(), EXAMPLE))
    assert isinstance(text, dict)
    sites = cast("list[dict[str, Any]]", text["sites"])
    assert any(site["carries"] for site in sites)
    assert not any("quantized_at" in site for site in sites)
    sites[0]["quantized_at"] = None
    with pytest.raises(FileError, match="a Site has no field 'quantized_at'"):
        plan_from_json(text)


def local_class() -> type:
    class Local(nn.Linear):
        pass

    return Local


@pytest.mark.parametrize("select", [lambda x: x, local_class(), nn.Linear(1, 1)], ids=["lambda", "local class", "object"])
def test_a_selector_without_a_name_cannot_be_stored(select: Any) -> None:
    with pytest.raises(SchemeError, match=r"config.rules\[0\].select: cannot be stored, because no importable name") as caught:
        config_to_json(QConfig().with_rules(Rule(select, None)))
    assert caught.value.fix == "select the sites by name or glob instead"


def test_a_field_added_later_takes_its_default_and_an_unknown_one_is_an_error() -> None:
    text = config_to_json(QConfig())
    assert isinstance(text, dict)
    del text["ends"]
    assert config_from_json(text) == QConfig()
    with pytest.raises(FileError, match="a QConfig has no field 'colour'"):
        config_from_json({**text, "colour": 1})
    with pytest.raises(FileError, match="weight: a QuantScheme lacks its field 'dtype'"):
        config_from_json({"type": "QConfig", "weight": {"type": "QuantScheme"}})


INT8 = {"type": "IntegerType", "name": "int8", "bits": 8, "qmin": -128, "qmax": 127}
LIES: dict[str, tuple[dict[str, Any], str]] = {
    "no such type": ({"weight": {"type": "Popen"}}, "weight: cannot be\n  got:      'Popen'"),
    "a type elsewhere": ({"weight": {"type": "Plan"}}, "weight: cannot be"),
    "a type of 64 bits": (
        {"weight": {"type": "QuantScheme", "dtype": INT8 | {"bits": 64}}},
        "weight.dtype: no integer type of truequant\n  got:      'int8' of 64 bits",
    ),
    "an unlawful value": (
        {"weight": {"type": "QuantScheme", "dtype": INT8, "observer": {"type": "MovingAverage", "momentum": 7.0}}},
        "weight.observer: MovingAverage: momentum out of range",
    ),
    "a gradient": ({"weight": {"type": "QuantScheme", "dtype": INT8, "gradient": "none"}}, "weight.gradient: cannot be"),
    "true for a number": (
        {"weight": {"type": "QuantScheme", "dtype": INT8, "granularity": {"type": "PerChannel", "axis": True}}},
        "weight.granularity.axis: cannot be",
    ),
    "an array for a record": ({"target": []}, "target: cannot be"),
    "rules": ({"rules": {"type": "Rule"}}, "rules: cannot be\n  got:      {'type': 'Rule'}\n  expected: an array"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str) -> None:
    change, message = LIES[lie]
    with pytest.raises(FileError) as caught:
        config_from_json({"type": "QConfig", **change}, "file.ckpt")
    assert f"file.ckpt.{message}" in str(caught.value)


SELECTORS: dict[str, tuple[Any, str]] = {
    "not imported": ({"function": "antigravity.fly"}, "nothing imported has this name"),
    "no such name": ({"class": "torch.nn.Nothing"}, "nothing imported has this name"),
    "a lazy attribute": ({"class": "torch._dynamo_of_nowhere.x"}, "nothing imported has this name"),
    "a module": ({"function": "torch.nn"}, "the name of a function"),
    "a function for a class": ({"class": "torch.add"}, "the name of a class"),
    "a class for a function": ({"function": "torch.nn.Linear"}, "the name of a function"),
    "no name": ({"class": 3}, "nothing imported has this name"),
    "flags that print": ({"regex": "a", "flags": int(re.DEBUG)}, "flags of re"),
    "no pattern": ({"regex": "(", "flags": 0}, "no regular expression"),
    "clashing flags": ({"regex": "a", "flags": int(re.ASCII | re.UNICODE)}, "no regular expression"),
    "a number": (3, "a string, {'regex': …"),
    "two keys": ({"class": "torch.nn.Linear", "function": "torch.add"}, "a string, {'regex': …"),
}


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_that_lie(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    select, message = SELECTORS[name]
    with pytest.raises(FileError) as caught:
        config_from_json({"type": "QConfig", "rules": [{"type": "Rule", "select": select, "scheme": None}]})
    assert message in str(caught.value)
    assert "config.rules[0].select" in str(caught.value)
    assert capsys.readouterr().out == ""


def test_looking_a_name_up_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(tq, "__getattr__", ran.append, raising=False)
    with pytest.raises(FileError):
        config_from_json({"type": "QConfig", "rules": [{"type": "Rule", "select": {"class": "truequant.x"}, "scheme": None}]})
    assert ran == []
