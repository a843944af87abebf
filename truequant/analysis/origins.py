"""Where differences begin: each node of the program on the codes that a runtime really gave it.

A float island orders its sums as its runtime does, so that codes behind it can differ while all integer arithmetic is
exact. Whether it is shows when the program goes on from the runtime's own codes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from truequant.integer import IntegerProgram, execute
from truequant.integer.nodes import FLOATING, Moving, Node


def island_fed(program: IntegerProgram, floats: Collection[str] = ()) -> tuple[frozenset[str], frozenset[str]]:
    """The edges whose codes a float island's value becomes, and every name that an island reaches.

    floats: names that integer nodes write but the runtime computes in float, as if they were islands.
    """
    values: set[str] = set()
    fed: set[str] = set()
    behind: set[str] = set()
    for node in program.nodes:
        names = node.reads
        in_float = node.output in floats
        if isinstance(node, FLOATING) or in_float or behind & set(names):
            behind.add(node.output)
        if in_float and node.output in program.edges:
            fed.add(node.output)
        elif isinstance(node, FLOATING) or in_float or (_keeps_values(node) and values & set(names)):
            values.add(node.output)
        elif values & set(names):
            fed.add(node.output)
    return frozenset(fed), frozenset(behind)


def _keeps_values(node: Node) -> bool:
    """Whether what a float island gave other values for is other values behind the node too, and no codes."""
    return isinstance(node, Moving) or node.rounds_once


@dataclass(frozen=True, slots=True)
class Origins:
    """integers, islands: codes that differ although their node read equal codes, by edge (or value, for a float output)
    of integer nodes and of islands. codes_behind_islands, outputs_behind_islands: differences that islands account for.
    """

    integers: Mapping[str, int] = field(default_factory=dict)
    islands: Mapping[str, int] = field(default_factory=dict)
    codes_behind_islands: int = 0
    outputs_behind_islands: int = 0


def origins(
    program: IntegerProgram,
    inputs: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    outputs: Mapping[str, tuple[Tensor, Tensor]],
    floats: Collection[str] = (),
) -> Origins:
    """What one batch says. wanted, found: the codes expected and a runtime's own; outputs: both, by their names.

    floats: what the runtime computes in float although the program does not (see `integer.float_sums`).
    """
    fed, behind = island_fed(program, floats)
    reference = execute(program, inputs, program.edges)
    given = {name: found[name].to(reference[name].dtype) for name in program.edges}
    local = execute(program, inputs, {*program.edges, *outputs}, given)
    wrong = {name: n for name, codes in given.items() if (n := int((local[name] != codes).sum()))}
    integers = {name: n for name, n in wrong.items() if name not in fed}
    islands = {name: n for name, n in wrong.items() if name in fed}
    for name, (want, have) in outputs.items():  # a float that no codes account for
        if name not in behind and (n := unequal(local[name], have)) and unequal(want, have):
            integers[name] = n
    if not islands and not behind & set(outputs):
        return Origins(integers)
    forced = execute(program, inputs, program.edges, {name: given[name] for name in fed})
    codes = 0
    for name, have in given.items():
        # In an edge that an island writes itself, the island is to blame where it gave other codes for equal ones.
        cause = (local[name] != have) if name in fed else (forced[name] == have)
        differs = (have != reference[name]) & (have.int() != wanted[name].int())
        codes += int((differs & cause).sum()) if integers else int(differs.sum())
    values = sum(unequal(want, have) for name, (want, have) in outputs.items() if name in behind) if not integers else 0
    return Origins(integers, islands, codes, values)


def unequal(a: Tensor, b: Tensor) -> int:
    """Numbers that differ; NaN is equal to NaN."""
    return int(((a != b) & ~((a != a) & (b != b))).sum())
