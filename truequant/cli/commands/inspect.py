"""`truequant inspect`: the plan of a model, before anything is changed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from truequant.cli.options import DEFAULT_PRESET, AsJson, ConfigFile, ModelName, Preset, Shapes, config_of
from truequant.cli.session import DIFFERENT, session
from truequant.cli.tables import table

if TYPE_CHECKING:
    from truequant.planning import Plan


def inspect(
    context: typer.Context,
    model: ModelName,
    shapes: Shapes = None,
    preset: Preset = DEFAULT_PRESET,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how a model would be quantized: each site, its scheme, what stays float and why.

    Exit code 1 where an op stays float that no program can hold, so that the model could not be converted.
    """
    with session(context, as_json) as run:
        from truequant.cli.inputs import model_and_inputs
        from truequant.planning import plan, plan_to_json

        made, inputs = model_and_inputs(model, shapes)
        decided = plan(made, inputs, config_of(preset, config))
        run.show(_sites(decided, model), *_in_float(decided), *(f"note: {note}" for note in decided.notes), _summary(decided))
        run.result(
            {"plan": plan_to_json(decided), "in_float": {s.name: s.reason for s in decided.in_float()}}
            | {"refused": {s.name: s.refused for s in decided.refused()}}
            | {"without_onnx": {s.name: s.without_onnx for s in decided.without_onnx()}}
            | _counts(decided)
        )
        if decided.refused():
            raise typer.Exit(DIFFERENT)


def _sites(decided: Plan, name: str) -> Table:
    """A row a site that computes something of its own; what is computed with another site is named in that site's row."""
    schemes = {q.name: str(q.scheme) for q in decided.quantizers}
    sites = table(f"{name}, target {decided.target}", ("site", "op", "weight", "result", "with it"), ratios=(5, 3, 3, 3, 4))
    for spec in decided.inputs:
        shape = "x".join("N" if size is None else str(size) for size in spec.shape)
        sites.add_row(spec.name, f"input {shape}", "", schemes.get(spec.quantizer or "", "float"), "")
    for site in decided.sites:
        if site.fused_into or site.action in ("identity", "movement"):
            continue
        result = schemes.get(site.emits or site.quantizer or "", "float")
        style = "yellow" if site.action == "float" else None
        sites.add_row(site.name, site.op, schemes.get(site.weight or "", ""), result, ", ".join(site.fused), style=style)
    return sites


def _in_float(decided: Plan) -> list[Table | str]:
    """What stays float and why; layers that no example reached."""
    from truequant.planning import where_to

    found: list[Table | str] = []
    if decided.in_float():
        reasons = table("What stays float", ("site", "op", "why"), ratios=(4, 3, 8))
        for site in decided.in_float():
            reasons.add_row(site.name, site.op, site.reason + where_to(site))
        found.append(reasons)
    if decided.uncalled:
        found.append(f"never called by the example inputs, left as they are: {', '.join(decided.uncalled)}")
    return found


def _counts(decided: Plan) -> dict[str, Any]:
    return {"actions": dict(sorted(Counter(site.action for site in decided.sites).items())), "uncalled": list(decided.uncalled)}


def _summary(decided: Plan) -> str:
    layers = sum(site.action == "layer" for site in decided.sites)
    left = len(decided.in_float())
    stays = "nothing stays float" if not left else f"{left} of {len(decided.sites)} sites stay float"
    return f"{layers} integer layers, {len(decided.quantizers)} quantizers; {stays}"
