"""Which sites a rule selects."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from truequant.errors import PlanError
from truequant.planning.ops import op_of
from truequant.schemes import Rule


@dataclass(frozen=True, slots=True)
class Selectable:
    """What a rule can select a site by. places: paths of its owner: all of those of a layer, whose weight is one everywhere."""

    name: str
    places: tuple[str, ...]
    module: nn.Module
    op: str


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    """`*` and `?` within one level of a dotted name, `**` across levels."""
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    table = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(table.get(p, re.escape(p)) for p in parts))


def _ancestors(name: str) -> Iterable[str]:
    parts = name.split(".") if name else []
    return (".".join(parts[:n]) for n in range(len(parts), 0, -1))


def selects(rule: Rule, site: Selectable) -> bool:
    """Whether `rule` is about `site`. A name or pattern of a module selects its whole subtree."""
    select = rule.select
    if isinstance(select, str):
        pattern = _glob(select)
        names = {site.name, site.name.split("#")[0], *(n for place in site.places for n in _ancestors(place))}
        return any(pattern.fullmatch(name) for name in names)
    if isinstance(select, re.Pattern):
        return any(select.fullmatch(name) for name in (site.name, *site.places))
    if isinstance(select, type):
        return isinstance(site.module, select)
    op = op_of(select)
    return op is not None and op.name == site.op


def matching(rules: tuple[Rule, ...], sites: list[Selectable]) -> list[list[Rule]]:
    """The rules of each site, in their order; a rule that selects none is a `PlanError` with near names."""
    result: list[list[Rule]] = [[] for _ in sites]
    for rule in rules:
        hit = False
        for rules_of_site, site in zip(result, sites, strict=True):
            if selects(rule, site):
                rules_of_site.append(rule)
                hit = True
        if not hit:
            raise _no_match(rule, sites)
    return result


def _no_match(rule: Rule, sites: list[Selectable]) -> PlanError:
    names = sorted({n for s in sites for n in (s.name, *s.places) if n})
    near = difflib.get_close_matches(rule.select, names, n=3, cutoff=0.4) if isinstance(rule.select, str) else []
    return PlanError(
        f"{rule!r} matches nothing",
        got=repr(rule.select),
        expected=", ".join(near or names[:8]) + ("" if near or len(names) <= 8 else ", …"),
        fix=f"Rule({near[0]!r}, …)" if near else "print(truequant.plan(model, example_inputs)) lists all sites",
    )
