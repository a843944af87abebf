"""Tables of functions hold what the facts of the actions say."""

from __future__ import annotations

from truequant.fake.attention import COMPUTES as ATTENDED
from truequant.fake.evaluation import COMPUTES as EVALUATED
from truequant.planning.actions import ACTIONS, COMPUTES, GRIDLESS, OF_SCORES
from truequant.transform.attention import ACTIONS as ATTENTION
from truequant.transform.computing import ACTIONS as LOWERED


def test_what_computes_codes_is_evaluated_on_codes_and_lowered() -> None:
    assert {*EVALUATED, *ATTENDED} == COMPUTES - {"layer"} | {"clamp", "weights"}  # a layer is evaluated by its site
    assert not {*EVALUATED} & {*ATTENDED}
    assert {*LOWERED, *ATTENTION} == COMPUTES | GRIDLESS | OF_SCORES | {"clamp", "weights"}


def test_facts_do_not_contradict_each_other() -> None:
    for action, facts in ACTIONS.items():
        assert facts.computes + facts.moves + facts.in_float <= 1, action
        assert not facts.gridless or facts.in_float, action
        assert not facts.homogeneous or facts.keeps_sign, action
        assert not (facts.needs_arguments or facts.keeps_sign or facts.named_rule) or facts.computes, action
