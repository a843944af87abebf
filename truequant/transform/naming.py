"""What a program calls its inputs and outputs: what the model's author calls them, where no edge has that name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from truequant.integer.nodes import Node
from truequant.planning import Plan, call_in, named_leaves, positional_in


def input_names(plan: Plan) -> dict[str, str]:
    """For each input of a plan, `input_0` and so on, its argument's name, and the way to it where that holds several."""
    parameters = positional_in(plan)
    found: dict[str, str] = {}
    for (part, *way), place in named_leaves(call_in(plan)):
        if part == "args" and int(way[0]) < len(parameters):
            way[0] = parameters[int(way[0])]
        if part in ("args", "kwargs"):
            found[plan.inputs[int(place)].name] = ".".join(map(str, way))
    taken = _of_sites(plan)
    times = Counter(found.values())

    def name_of(own: str) -> str:
        name = found.get(own, own)
        if times[name] > 1 or not _free(name, ()):
            return f"{own}.float"
        return f"{name}.float" if name in taken else name

    return {spec.name: name_of(spec.name) for spec in plan.inputs}


def output_names(outputs: Any) -> Iterator[tuple[str, str]]:
    """For each tensor that a model returns, the value's name in the program, and the key, field or place that it stands at."""
    for way, value in named_leaves(outputs):
        first = way[0] if way else ""
        place = [] if isinstance(first, str) and first else ["output"]
        yield value, ".".join(place + [str(step) for step in way])


def with_output_names(
    nodes: Sequence[Node], outputs: Any, plan: Plan, inputs: Collection[str]
) -> tuple[tuple[Node, ...], dict[str, str]]:
    """The nodes, and the new name of each value that the model returns once, that a node writes and that none reads.

    A layer that returns floats keeps its own name, by which its weights are known.
    """
    sites = _of_sites(plan)
    taken = {*sites, *inputs, *(node.output for node in nodes)}
    written = {node.output: at for at, node in enumerate(nodes)}
    read = {name for node in nodes for name in node.reads}
    wanted = list(output_names(outputs))
    times = Counter([value for value, _ in wanted] + [name for _, name in wanted])
    changed, table = list(nodes), {value: value for value, _ in wanted}
    for value, name in wanted:
        if value in written and value not in sites | read and times[value] == times[name] == 1 and _free(name, taken):
            node: Any = changed[written[value]]
            changed[written[value]] = replace(node, output=name)
            table[value] = name
    return tuple(changed), table


def _of_sites(plan: Plan) -> set[str]:
    return {site.name for site in plan.sites} | {spec.name for spec in plan.inputs}


def _free(name: str, taken: Collection[str]) -> bool:
    """Names of steps within a program begin with `@`, and those of values of an edge end in `.value`."""
    return bool(name) and name not in taken and "@" not in name and not name.endswith((".value", ".float", ".codes"))
