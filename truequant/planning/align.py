"""Which call in training is which call in evaluation.

A training-only call (noise, an auxiliary loss) shifts the ordinals of the calls behind it, so that the two sequences of
an owner's calls are aligned by op and source line. A module that the one traced step of training did not call, as LayerDrop
leaves layers out at random, is called in another step as evaluation calls it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

from truequant.planning.capture import Call, Frame, Trace
from truequant.planning.graph import Graph


def calls_in_training(graph: Graph, trained: Trace) -> dict[int, Call | None]:
    """For each node of the evaluated graph, by index, its call in training; None where it has none."""
    in_training: dict[tuple[str, tuple[int, ...]], list[Call]] = {}
    for call in trained.calls:
        in_training.setdefault((call.owner, graph.repeats.key(call.frame)), []).append(call)
    in_evaluation: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for node in graph.nodes:
        in_evaluation.setdefault((node.call.owner, node.frame), []).append(node.index)
    result: dict[int, Call | None] = {}
    for where, indices in in_evaluation.items():
        calls = in_training.get(where, [])
        keys = [_key(graph.nodes[i].call) for i in indices]
        matcher = SequenceMatcher(None, keys, [_key(c) for c in calls], autojunk=False)
        result |= dict.fromkeys(indices)
        for block in matcher.get_matching_blocks():
            for offset in range(block.size):
                result[indices[block.a + offset]] = calls[block.b + offset]
    return result


def skipped(evaluated: Trace, trained: Trace) -> frozenset[Frame]:
    """Calls of modules that evaluation made and training did not."""
    return frozenset(evaluated.frames) - frozenset(trained.frames)


def with_skipped(evaluated: Trace, trained: Trace) -> Trace:
    """The trace of training as it counts calls, with those of modules that it skipped: they are legal in a later step."""
    left_out = skipped(evaluated, trained)

    def counted(of: Mapping[tuple[str, Frame], Counter[str]], to: dict[tuple[str, Frame], Counter[str]]) -> Any:
        return to | {where: Counter(counts) for where, counts in of.items() if where[1] in left_out}

    frames = [*trained.frames, *(frame for frame in evaluated.frames if frame in left_out)]
    counts, ranks = counted(evaluated.op_counts, trained.op_counts), counted(evaluated.op_ranks, trained.op_ranks)
    return replace(trained, frames=frames, op_counts=counts, op_ranks=ranks)


def calls_skipped(graph: Graph, left_out: Collection[Frame]) -> dict[int, Call]:
    """For each node of such a module, by index, its call in evaluation."""
    return {node.index: node.call for node in graph.nodes if node.call.frame in left_out}


def _key(call: Call) -> tuple[str, str]:
    return call.op.name, call.location
