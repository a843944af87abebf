"""Whether a plan that a file holds is a plan at all, and whether it is one of this model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from truequant.errors import FileError, PlanError
from truequant.fake import QUANTIZERS
from truequant.planning import Plan, QuantizerPlan
from truequant.schemes import PerTensor


def state_prefix(quantizer: QuantizerPlan) -> str:
    """Where the state of a quantizer stands in its model's state dict."""
    return f"{quantizer.owner}.{QUANTIZERS}.{quantizer.slot}." if quantizer.owner else f"{QUANTIZERS}.{quantizer.slot}."


def check_plan(plan: Plan, where: str) -> None:
    """FileError for a plan whose parts do not fit each other: what `prepare` executes, it does not question."""
    quantizers = {q.name: q for q in plan.quantizers}
    sites = {s.name: s for s in plan.sites}
    owners = {o.name for o in plan.owners}
    for kind, names in (
        ("quantizer", [q.name for q in plan.quantizers]), ("site", [s.name for s in plan.sites]),
        ("owner", [o.name for o in plan.owners]),
    ):  # fmt: skip
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise FileError(f"{where}: the {kind} '{twice[0][:200]}' stands twice in the plan")
    for q in plan.quantizers:
        whole = f"{q.owner}.{q.slot}" if q.owner else q.slot
        per_tensor = isinstance(q.scheme.granularity, PerTensor)
        if q.name != whole or not q.slot or "." in q.slot or (q.channels is None) != per_tensor:
            raise FileError(f"{where}: the quantizer '{q.name[:200]}' contradicts itself", got=repr(q)[:300])
        if q.kind != "weight" and not per_tensor:
            raise FileError(f"{where}: '{q.name[:200]}' has several scales", got=str(q.scheme), expected="PerTensor()")
    for s in plan.sites:
        activations = [name for name in (*s.reads, s.emits, s.quantizer) if name is not None]
        wrong = [name for name in activations if name not in quantizers or quantizers[name].kind == "weight"]
        if s.weight is not None and (s.weight not in quantizers or quantizers[s.weight].kind != "weight"):
            wrong.append(s.weight)
        wrong += [name for name in (*s.fused, s.norm, s.fused_into) if name is not None and name not in sites]
        if wrong or s.owner not in owners or any(step < 0 for step in s.frame):
            raise FileError(
                f"{where}: the site '{s.name[:200]}' names what the plan does not hold", got=repr(wrong or s.owner)[:200]
            )
    for spec in plan.inputs:
        if spec.quantizer is not None and (spec.quantizer not in quantizers or quantizers[spec.quantizer].kind == "weight"):
            raise FileError(f"{where}: the input '{spec.name[:200]}' names what the plan does not hold", got=repr(spec)[:200])


def check_modules(plan: Plan, module: nn.Module, where: str) -> None:
    """PlanError where the model lacks modules that the plan is about."""
    there = dict(module.named_modules())
    needed = {*(o.name for o in plan.owners), *(q.owner for q in plan.quantizers), *plan.uncalled}
    if missing := sorted(needed - set(there)):
        raise PlanError(
            f"{where}: its plan does not fit the model: {len(missing)} of its modules are not there",
            got=f"a {type(module).__name__} without {_some(missing)}",
            expected=_some(sorted(needed)),
            fix="build the model with the class and the arguments that it was saved with",
        )


def check_scales(plan: Plan, state: Mapping[str, Any], prefix: str, where: str) -> None:
    """FileError where the plan's quantizers have no state of their shape: it bounds what `prepare` allocates by the file."""
    for q in plan.quantizers:
        name = f"{prefix}{state_prefix(q)}scale"
        shape = () if q.channels is None else (q.channels,) if isinstance(q.channels, int) else q.channels
        found = tuple(state[name].shape) if name in state and hasattr(state[name], "shape") else "nothing"
        if found != shape:
            raise FileError(f"{where}: the plan and the state disagree at '{name[:200]}'", got=found, expected=f"shape {shape}")


def check_same(plan: Plan, prepared: Plan, where: str) -> None:
    """PlanError where a model was prepared by another plan; the reasons that plans give in words may differ."""
    ours, theirs = _decisions(prepared), _decisions(plan)
    if ours == theirs:
        return
    different = next(f for f in ours if ours[f] != theirs[f])
    pairs = zip(_items(ours[different]), _items(theirs[different]), strict=False)
    first = next(((a, b) for a, b in pairs if a != b), (ours[different], theirs[different]))
    raise PlanError(
        f"{where}: the model is prepared by another plan: their {different} differ",
        got=f"{first[0]} in the model"[:300],
        expected=f"{first[1]} in the file"[:300],
        fix="pass the float model, which is then prepared by the file's plan, or tq.restore_float(model) first",
    )


def _items(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _decisions(plan: Plan) -> dict[str, object]:
    return {
        "target": plan.target,
        "quantizers": plan.quantizers,
        "sites": tuple(replace(site, reason="", rule=None) for site in plan.sites),
        "inputs": plan.inputs,
        "owners": plan.owners,
    }


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name[:80]}'" for name in names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
