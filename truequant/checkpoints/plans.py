"""Whether a plan that a file holds is one of this model and of the state beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from truequant.errors import FileError, PlanError
from truequant.fake import QUANTIZERS
from truequant.planning import WIDE_BITS, Plan, QuantizerPlan, of_width


def state_prefix(quantizer: QuantizerPlan) -> str:
    """Where the state of a quantizer stands in its model's state dict."""
    return f"{quantizer.owner}.{QUANTIZERS}.{quantizer.slot}." if quantizer.owner else f"{QUANTIZERS}.{quantizer.slot}."


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
    ours["quantizers"], theirs["quantizers"] = _alike(prepared.quantizers, plan.quantizers)
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


def _alike(
    ours: tuple[QuantizerPlan, ...], theirs: tuple[QuantizerPlan, ...]
) -> tuple[tuple[QuantizerPlan, ...], tuple[QuantizerPlan, ...]]:
    """The same with one width for streams that one side has not decided about: the state decides."""
    open_to = {q.name for q in (*ours, *theirs) if q.undecided}

    def without_width(q: QuantizerPlan) -> QuantizerPlan:
        scheme = of_width(q.scheme, wide=False) if q.name in open_to and q.scheme.dtype.bits == WIDE_BITS else q.scheme
        return replace(q, scheme=scheme, stream=None, chosen=False)

    return tuple(map(without_width, ours)), tuple(map(without_width, theirs))


def _decisions(plan: Plan) -> dict[str, object]:
    return {
        "target": plan.target,
        "quantizers": plan.quantizers,
        "sites": tuple(replace(site, reason="", rule=None, rank=None, train_rank=None) for site in plan.sites),
        "inputs": plan.inputs,
        "owners": tuple((o.name, o.leaf) for o in plan.owners if o.leaf or o.multiple),
    }
