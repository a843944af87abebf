"""What becomes of a call: every action that a plan may give a site, and what is known of it.

A new action is one row of `ACTIONS`, its evaluation (`truequant.fake.evaluation`) and its lowering (`truequant.transform`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal, get_args

Action = Literal[
    "layer", "norm", "affine", "product", "add", "sub", "mul", "table", "lookup", "average", "pool", "clamp", "concat",
    "movement", "resize", "normalize", "within", "identity", "float", "weighted", "weight_only", "dynamic",
    "softmax", "attention", "attend", "weights", "scaled", "masked",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What rooms ask of an action."""

    computes: bool = False
    """Whether it writes codes on a grid of its own, computed from codes."""
    moves: bool = False
    """Whether it writes codes that it read, on their grid."""
    in_float: bool = False
    """Whether its result is a float that a quantizer may follow."""
    gridless: bool = False
    """Whether it is a linear layer of integer weights that reads and writes values."""
    needs_arguments: bool = False
    """Whether its codes depend on arguments that a module hands to its function."""
    plain: bool = False
    """Whether it is in training the float model's op and the quantizer behind it, and nothing else."""
    homogeneous: bool = False
    """Whether a positive factor of its input is a factor of its result, whatever the op."""
    keeps_sign: bool = False
    """Whether nothing negative comes of what is not negative, whatever the op."""
    bare: bool = False
    """Whether it computes on codes too where its result leaves as values."""
    of_scores: bool = False
    """Whether it lies between a product of scores and its softmax, and is computed with the product."""
    any_width: bool = False
    """Whether runtimes compute it exactly on codes of 16 bits too."""
    named_rule: bool = False
    """Whether runtimes round it by rules of their own (`ArithmeticRule`)."""


ACTIONS: Mapping[Action, Facts] = MappingProxyType({
    "layer": Facts(computes=True, bare=True),
    "norm": Facts(),
    "affine": Facts(computes=True),
    "product": Facts(computes=True, keeps_sign=True),
    "add": Facts(computes=True, keeps_sign=True, any_width=True, named_rule=True),
    "sub": Facts(computes=True, any_width=True),
    "mul": Facts(computes=True, keeps_sign=True, any_width=True, named_rule=True),
    "table": Facts(computes=True, needs_arguments=True, plain=True, any_width=True),
    "lookup": Facts(computes=True, needs_arguments=True, any_width=True),
    "average": Facts(computes=True, needs_arguments=True, homogeneous=True, keeps_sign=True),
    "pool": Facts(computes=True, needs_arguments=True, homogeneous=True, keeps_sign=True, named_rule=True),
    "resize": Facts(computes=True, needs_arguments=True, keeps_sign=True),
    "normalize": Facts(computes=True, needs_arguments=True, plain=True, bare=True, any_width=True),
    "within": Facts(plain=True),
    "clamp": Facts(moves=True),
    "concat": Facts(moves=True),
    "movement": Facts(moves=True, plain=True),
    "identity": Facts(plain=True),
    "float": Facts(in_float=True, plain=True),
    "weighted": Facts(),
    "weight_only": Facts(in_float=True, gridless=True),
    "dynamic": Facts(in_float=True, gridless=True),
    "softmax": Facts(computes=True, needs_arguments=True),
    "attention": Facts(computes=True),
    "attend": Facts(computes=True),
    "weights": Facts(in_float=True),
    "scaled": Facts(of_scores=True, plain=True),
    "masked": Facts(of_scores=True),
})  # fmt: skip
assert set(ACTIONS) == set(get_args(Action))


def _where(fact: str) -> frozenset[str]:
    assert fact in {field.name for field in fields(Facts)}
    return frozenset(action for action, facts in ACTIONS.items() if getattr(facts, fact))


COMPUTES, MOVES, FLOAT, GRIDLESS = _where("computes"), _where("moves"), _where("in_float"), _where("gridless")
NEED_ARGUMENTS, PLAIN, HOMOGENEOUS = _where("needs_arguments"), _where("plain"), _where("homogeneous")
OF_SCORES = _where("of_scores")
KEEP_SIGN, NAMED_RULE, BARE, ANY_WIDTH = _where("keeps_sign"), _where("named_rule"), _where("bare"), _where("any_width")
DIFFERS = COMPUTES | GRIDLESS | OF_SCORES | {"weights"}
"""Actions at which something else than in the float model happens, with or without a quantizer behind."""
NOTHING_BUT_THE_OP = MOVES | {"identity"}
"""Actions that are nothing but the op, in training and in evaluation, where no quantizer is behind it."""
