"""Whether the records of a plan that a file or a hand made fit each other."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from truequant.errors import FileError, PlanError, SchemeError
from truequant.planning.actions import GRIDLESS
from truequant.planning.algorithms import check_dynamic
from truequant.planning.ops import LINEAR_OPS
from truequant.planning.records import OwnerPlan, QuantizerPlan, Site, TensorSpec
from truequant.schemes import PerTensor, QuantScheme


def check_records(
    all_quantizers: Sequence[QuantizerPlan], all_sites: Sequence[Site], all_owners: Sequence[OwnerPlan],
    inputs: Sequence[TensorSpec], where: str, error: type[FileError] | type[PlanError],
) -> None:  # fmt: skip
    """`error` where one contradicts itself, stands twice, or names what is not there."""
    quantizers = {q.name: q for q in all_quantizers}
    sites = {s.name: s for s in all_sites}
    owners = {o.name for o in all_owners}
    for kind, names in (
        ("quantizer", [q.name for q in all_quantizers]), ("site", [s.name for s in all_sites]),
        ("owner", [o.name for o in all_owners]),
    ):  # fmt: skip
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise error(f"{where}: the {kind} '{twice[0][:200]}' stands twice in the plan")
    for q in all_quantizers:
        _check_quantizer(q, where, error)
    for s in all_sites:
        _check_site(s, where, error)
        wrong = _not_held(s, quantizers, sites)
        if wrong or s.owner not in owners or any(step < 0 for step in s.frame):
            raise error(
                f"{where}: the site '{s.name[:200]}' names what the plan does not hold", got=repr(wrong or s.owner)[:200]
            )
    for spec in inputs:
        if spec.quantizer is not None and not _is(spec.quantizer, quantizers, weight=False):
            raise error(f"{where}: the input '{spec.name[:200]}' names what the plan does not hold", got=repr(spec)[:200])


def _check_quantizer(q: QuantizerPlan, where: str, error: type[FileError] | type[PlanError]) -> None:
    whole = f"{q.owner}.{q.slot}" if q.owner else q.slot
    per_tensor = isinstance(q.scheme.granularity, PerTensor)
    named_amiss = q.name != whole or not q.slot or "." in q.slot
    streamed_amiss = q.chosen if q.stream is None else q.stream >= 0 or q.kind != "activation"
    if named_amiss or streamed_amiss or (q.channels is None) != per_tensor:
        raise error(f"{where}: the quantizer '{q.name[:200]}' contradicts itself", got=repr(q)[:300])
    if q.kind != "weight" and not per_tensor:
        raise error(f"{where}: '{q.name[:200]}' has several scales", got=str(q.scheme), expected="PerTensor()")


def _check_site(s: Site, where: str, error: type[FileError] | type[PlanError]) -> None:
    linear, got = s.action in GRIDLESS, None
    if any(not 0 <= place < len(s.reads) or s.reads[place] is None for place in s.constants):
        got = f"constants {s.constants[:8]}"
    elif (linear and (s.weight is None or s.op not in LINEAR_OPS)) or (s.dynamic is not None) != (s.action == "dynamic"):
        got = f"{s.action} of {s.op[:80]}"
    elif not _affine_is_sound(s) or (s.norm_rule is not None) != (s.action == "normalize"):
        got = repr(s.affine or s.norm_rule)[:300]
    if got is not None:
        raise error(f"{where}: the site '{s.name[:200]}' contradicts itself", got=got)
    if s.dynamic is not None:
        check_dynamic(s.dynamic, s.name[:200], error)


def _not_held(s: Site, quantizers: Mapping[str, QuantizerPlan], sites: Collection[str]) -> list[str]:
    """Names in a site that are no quantizer of the kind they should be, or no site."""
    activations, weights = (*s.reads, s.emits, s.quantizer), (s.weight, *(q for _, q in s.weights))
    return [
        *(name for name in activations if name is not None and not _is(name, quantizers, weight=False)),
        *(name for name in weights if name is not None and not _is(name, quantizers, weight=True)),
        *(name for name in (*s.fused, s.norm, s.fused_into) if name is not None and name not in sites),
    ]


def _is(name: str, quantizers: Mapping[str, QuantizerPlan], *, weight: bool) -> bool:
    return name in quantizers and (quantizers[name].kind == "weight") == weight


def _affine_is_sound(site: Site) -> bool:
    if site.operand not in (None, 0, 1, 2):
        return False
    formulas = () if site.affine is None else (site.affine.factor, site.affine.bias)
    if site.affine is not None and (site.action not in ("layer", "affine", "normalize") or formulas == (None, None)):
        return False
    return all(formula is None or formula.is_sound() for formula in formulas)


def edited(quantizers: Sequence[QuantizerPlan], name: str, scheme: QuantScheme) -> tuple[QuantizerPlan, ...]:
    """The quantizers of a plan with another scheme for one of them (see `Plan.with_scheme`)."""
    old = next((q for q in quantizers if q.name == name), None)
    if old is None:
        near = difflib.get_close_matches(name, [q.name for q in quantizers], 3)
        raise PlanError(f"the plan has no quantizer '{name}'", expected=", ".join(near) or "a name that print(plan) shows")
    if scheme.granularity != old.scheme.granularity or scheme.power_of_two != old.scheme.power_of_two:
        raise SchemeError(
            f"'{name}': an edit keeps granularity and form of the scale, which sizes and folding depend on",
            got=f"{scheme.granularity}, {scheme.scale}",
            expected=f"{old.scheme.granularity}, {old.scheme.scale}",
            fix="say it by a Rule, and plan again",
        )
    if old.kind == "weight" and not (scheme.dtype.signed and scheme.is_symmetric and scheme.dtype.bits <= 8):
        raise SchemeError(f"'{name}': weights are signed, symmetric and of at most 8 bits", got=str(scheme))
    if old.kind != "weight" and scheme.dtype.signed != old.scheme.dtype.signed:
        raise SchemeError(
            f"'{name}': an edit keeps the sign of activations", got=str(scheme), expected=str(old.scheme),
            fix="say it by a Rule, and plan again",
        )  # fmt: skip
    if old.kind != "weight" and old.scheme.is_symmetric and scheme.symmetric is None:
        scheme = scheme.with_(symmetric=True)  # behind a ReLU the zero point stays 0
    return tuple(replace(q, scheme=scheme, stream=None, chosen=False) if q is old else q for q in quantizers)
