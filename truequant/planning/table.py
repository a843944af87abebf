"""A plan as a table for people: sites below the module that they belong to, in the order of calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from truequant.planning.actions import FLOAT
from truequant.planning.records import Site, TensorSpec

_LONG = 32
"""Characters of a name of another module; of a longer one its last parts are shown."""


def table_of(sites: Sequence[Site], inputs: Sequence[TensorSpec], schemes: Mapping[str, str], notes: Sequence[str]) -> str:
    """Rows of name, op, weight, what is read, result and reason. schemes: of each quantizer, by name."""
    rows: list[tuple[str, ...]] = [("site", "op", "weight", "reads", "result", "why")]
    for spec in inputs:
        result = schemes.get(spec.quantizer or "", spec.dtype if "float" not in spec.dtype else "float")
        rows.append((spec.name, "input", "", "", result, "model input"))
    rows += _grouped(sites, schemes)
    widths = [max((len(row[i]) for row in rows if len(row) > 1), default=0) for i in range(len(rows[0]))]
    lines = [row[0] if len(row) == 1 else _line(row, widths) for row in rows]
    return "\n".join([lines[0], "-" * min(120, sum(widths) + 2 * len(widths)), *lines[1:], *(f"note: {n}" for n in notes)])


def _grouped(sites: Sequence[Site], schemes: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """A row for each site, behind one of a single cell where another module begins."""
    module = ""
    for site in sites:
        around, _, own = site.name.rpartition(".")
        if around != module:
            yield (f"{around}:" if around else "(the model itself):",)
            module = around
        indent = "  " if around else ""
        weight = schemes.get(site.weight or "".join(name for _, name in site.weights[:1]), "")
        op = "" if own.rpartition("_")[0] == site.op else site.op  # calls of functions have their op in their name
        yield indent + own, op, weight, _reads(site, around), _result(site, schemes, around), _why(site, around)


def _reads(site: Site, around: str) -> str:
    if site.dynamic is not None:
        return str(site.dynamic)
    return ", ".join("float" if name is None else _relative(name, around) for name in site.reads)


def _result(site: Site, schemes: Mapping[str, str], around: str) -> str:
    if site.fused_into:
        return f"in {_relative(site.fused_into, around)}"
    scheme = schemes.get(site.emits or site.quantizer or "")
    if site.action in FLOAT:
        return "float" if scheme is None else f"float, then {scheme}"
    return scheme or ("float" if site.action == "layer" else "")


def _why(site: Site, around: str) -> str:
    reason = site.reason
    if site.fused_into:
        reason = reason.replace(site.fused_into, _relative(site.fused_into, around))
    reason += where_to(site)
    return reason if site.rule is None or site.rule in reason else f"{reason}; {site.rule}"


def where_to(site: Site) -> str:
    """What a float site cannot become, as the end of its reason; nothing where every file holds it."""
    if site.refused:
        return f"; cannot be converted: no program holds {', '.join(site.refused)}"
    return f"; no ONNX form: {', '.join(site.without_onnx)}" if site.without_onnx else ""


def _relative(name: str, around: str) -> str:
    """A name as it is called within `around`; of another module's long name its end."""
    if around and name.startswith(f"{around}."):
        return name[len(around) + 1 :]
    while len(name) > _LONG and "." in name.removeprefix("…"):
        name = "…" + name.removeprefix("…").partition(".")[2]
    return name


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
