"""Residual streams in front of norms: edges whose width is chosen when their range is found.

A few features of a transformer's stream are 50 to 1000 times larger than the rest, which on one grid of 8 bits is lost in front
of the next norm. Which edges may have 16 bits is decided by structure, since a plan is made before data is seen: those that ops
write and read which are exact on 16 bits too, or stay float. Which of them have is decided once, by `is_wide_stream`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from truequant.planning.actions import ANY_WIDTH, COMPUTES, FLOAT, MOVES
from truequant.planning.graph import Graph, Node
from truequant.planning.ops import Role
from truequant.planning.overrides import Overrides
from truequant.planning.widths import WIDE_BITS
from truequant.schemes import Inherit, PerTensor, QConfig, QuantScheme

_CHANNELS_LAST = -1
_TURNS = frozenset(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"))
"""Moves behind which the channels may lie on another axis."""


def streams(
    graph: Graph, overrides: Mapping[int, Overrides], config: QConfig, schemes: Mapping[int, QuantScheme | None]
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Grids that have 8 or 16 bits, with the axis of their channels; and why others like them keep 8, a sentence each."""
    found: dict[int, int] = {}
    reasons: dict[int, str] = {}
    ends = {graph.grid(graph.resolve(v)) for v in (*graph.trace.inputs, *graph.outputs)}
    free = [
        g
        for g, scheme in schemes.items()
        if config.wide_streams and scheme is not None and g not in ends and _may_widen(scheme)
    ]
    edges = {g: _edge(graph, g) for g in free}
    while True:  # what is added into a stream, from lookups and other sums on, is a part of it
        known = len(found) + len(reasons)
        for grid, (writers, readers) in edges.items():
            if grid in found or grid in reasons or not _leads_to_a_norm(graph, writers, readers, found):
                continue
            if _explicit(overrides, writers, readers):
                continue
            summing = [n for n in readers if n.integer and n.action not in ANY_WIDTH]
            if summing:
                reason = f"'{summing[0].name}' reads it too, which sums no wider codes exactly"
            elif WIDE_BITS not in config.target.activation_bits:
                reason = f"target '{config.target}' has no activations of {WIDE_BITS} bits"
            else:
                found[grid] = _CHANNELS_LAST
                continue
            reasons[grid] = f"the result of '{writers[0].name}' keeps 8 bits however its channels differ: {reason}"
        if known == len(found) + len(reasons):
            return found, tuple(reasons.values())


def _edge(graph: Graph, grid: int) -> tuple[list[Node], list[Node]]:
    """Who writes values onto a grid, and who reads them."""
    alone = [n for n in graph.nodes if n.fused_into is None and n.action != "identity"]
    writers = [n for n in alone if n.action in COMPUTES | FLOAT and n.writes and graph.grid(n.end) == grid]
    return writers, [n for n in alone if any(graph.grid(v) == grid for v in n.reads)]


def _may_widen(scheme: QuantScheme) -> bool:
    return scheme.dtype.bits == 8 and scheme.scale.any_width and isinstance(scheme.granularity, PerTensor)


def _leads_to_a_norm(graph: Graph, writers: Sequence[Node], readers: Sequence[Node], found: Collection[int]) -> bool:
    """Whether ops of any width write the grid, channels last, and a norm over channels reads it, or a sum that is a stream.

    found: the grids that are streams.
    """
    if not writers or any(n.action not in ANY_WIDTH | FLOAT for n in writers):
        return False
    shapes = [graph.shape(n.end) for n in writers]
    if any(len(shape) < 2 or shape[-1] != shapes[0][-1] for shape in shapes):
        return False
    if any(n.action in MOVES and n.call.op.name in _TURNS for n in readers):
        return False
    channels, norms = shapes[0][-1], [n for n in readers if n.action == "normalize"]
    if any(n.norm_rule is None or n.norm_rule.axes != (-1,) or graph.shape(n.reads[0])[-1] % channels for n in norms):
        return False
    sums = [n for n in readers if n.call.op.role in (Role.ADD, Role.SUB) and graph.grid(n.end) in found]
    return bool(norms) or any(graph.shape(n.end)[-1] == channels for n in sums)


def _explicit(overrides: Mapping[int, Overrides], writers: Sequence[Node], readers: Sequence[Node]) -> bool:
    """Whether a rule says what scheme the grid has."""
    said = [overrides[link.index].output for n in writers for link in (n, *n.fused)]
    said += [overrides[n.index].input for n in readers if n.integer]
    return any(not isinstance(scheme, Inherit) for scheme in said)
