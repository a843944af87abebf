"""Which call in training is which call in evaluation.

A training-only call (noise, an auxiliary loss) shifts the ordinals of the calls behind it, so that the two sequences of
an owner's calls are aligned by op and source line.
"""

from __future__ import annotations

from difflib import SequenceMatcher

from truequant.planning.capture import Call, Trace
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


def _key(call: Call) -> tuple[str, str]:
    return call.op.name, call.location
