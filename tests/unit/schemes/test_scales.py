"""A scale rule says what all others ask of it: no table names rules by hand but the one of their arithmetic."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

import truequant as tq
from truequant import schemes
from truequant.errors import SchemeError
from truequant.fake.algorithms import ALGORITHMS, Algorithm
from truequant.planning import config_from_json, config_to_json
from truequant.schemes import SCALE_RULES, ScaleRule, config_from_table

PACKAGE = Path(tq.__file__).parent
NAMES = {rule.__name__ for rule in SCALE_RULES}


def test_every_rule_is_published_and_has_its_arithmetic() -> None:
    assert get_args(ScaleRule) == SCALE_RULES
    assert set(ALGORITHMS) == set(SCALE_RULES)
    assert set(schemes.__all__) >= NAMES
    assert set(tq.scales.__all__) == NAMES


@pytest.mark.parametrize("rule", SCALE_RULES, ids=lambda rule: rule.label)
def test_every_rule_is_read_from_toml_and_json(rule: type[ScaleRule]) -> None:
    config = config_from_table({"weight": {"dtype": "int2", "scale": rule.label.lower()}}, "here")
    assert config.weight is not None
    assert config.weight.scale == rule()
    assert config_from_json(config_to_json(config)) == config
    assert (str(config.weight) == "int2") == (rule.of_range and not rule.power_of_two)


def test_names_in_toml_are_those_that_files_have() -> None:
    expected = "float, power-of-two, lsq, lsq+, pact, tqt, dorefa, twn"
    with pytest.raises(SchemeError, match="unknown name") as error:
        config_from_table({"weight": {"dtype": "int8", "scale": "none of them"}}, "here")
    assert str(error.value.expected).startswith(expected)


def test_pickled_models_hold_algorithms_in_this_form() -> None:
    """Values in this order, without names: a field more, or in another place, would break models that were pickled before."""
    order = ["fake", "force", "trainable", "weight_scale", "activation_scale", "codes"]
    assert [field.name for field in fields(Algorithm)] == order


def test_facts_are_no_fields() -> None:
    for rule in SCALE_RULES:
        told = config_to_json(schemes.QConfig(weight=schemes.QuantScheme(schemes.int2, scale=rule())))
        assert "learned" not in str(told)
    with pytest.raises(SchemeError, match="unknown key 'label'"):
        config_from_table({"weight": {"dtype": "int8", "scale": {"kind": "lsq", "label": "another"}}}, "here")


def test_nothing_asks_which_rule_it_is() -> None:
    """But a rule's own arithmetic, which reads its fields."""
    asked = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if (PACKAGE / "fake" / "algorithms") in file.parents:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
                named = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                named |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
                asked += [f"{file.relative_to(PACKAGE)}:{node.lineno} asks for {name}" for name in sorted(named & NAMES)]
            if isinstance(node, ast.MatchClass) and getattr(node.cls, "id", None) in NAMES:
                asked.append(f"{file.relative_to(PACKAGE)}:{node.lineno} matches {ast.unparse(node.cls)}")
    assert not asked, "ask the rule for a fact of `truequant.schemes.scales.Facts`:\n" + "\n".join(asked)
