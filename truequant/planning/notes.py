"""What a plan says of a model as a whole, in sentences behind its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from truequant.planning.actions import ANY_WIDTH, COMPUTES
from truequant.planning.capture import Trace
from truequant.planning.float_weights import coded
from truequant.planning.graph import Graph
from truequant.planning.leaves import is_leaf
from truequant.planning.ops import Role, is_loss
from truequant.planning.overrides import Overrides
from truequant.planning.records import QuantizerPlan, Site
from truequant.planning.saturation import narrowed_note
from truequant.schemes import QConfig, QuantScheme


def notes(
    graph: Graph, trained: Trace, overrides: Mapping[int, Overrides], config: QConfig, summed: Sequence[QuantizerPlan],
    uncalled: Sequence[str], narrow: int,
) -> tuple[str, ...]:  # fmt: skip
    """summed: quantizers of what sums read and write.

    uncalled: leaves with parameters that no example calls. narrow: how many weights were narrowed.
    """
    evaluated, in_training = graph.trace.module_calls, trained.module_calls
    found = [f"'{name}' stays float: no example input calls it; a call of it raises PlanError" for name in uncalled]
    for name, module in graph.modules.items():
        if (
            name in in_training
            and name not in evaluated
            and is_leaf(module)
            and any(True for _ in module.parameters(recurse=False))
        ):
            found.append(f"'{name}' stays float: it is called in training only")
    found += [
        f"the converted model returns None where the model returns a {kind}: a program holds tensors, numbers and text"
        for kind in graph.trace.strangers
    ]
    losses = dict.fromkeys(n.name for n in graph.nodes if is_loss(n.call.op.name))
    found += [f"'{name}' is a loss, which no program computes: prepare with example inputs without labels" for name in losses]
    found += [
        f"{said.rule}: no weight of '{node.name}' is quantized by it: its table is no parameter of the module that reads it"
        for node in graph.nodes
        if node.call.op.role is Role.LOOKUP and isinstance((said := overrides[node.index]).weight, QuantScheme)
        if not coded(node, graph, overrides)
    ]
    if narrow:
        found.append(narrowed_note(narrow))
    target = config.target
    for q in summed:
        if q.scheme.dtype.bits > target.integer_bits:
            found.append(f"'{q.name}' has {q.scheme.dtype.bits} bits: {target} sums such codes in float32, never EXACT")
    return tuple(found)


def wide_sums(sites: Sequence[Site], quantizers: Mapping[str, QuantizerPlan]) -> tuple[QuantizerPlan, ...]:
    """Those of the quantizers of activations that a site reads or writes which does not compute exactly on any width."""
    summing = [s for s in sites if s.action in COMPUTES - ANY_WIDTH and s.fused_into is None]
    names = {name for s in summing for name in (*s.reads, s.emits, s.scores)}
    return tuple(q for name, q in quantizers.items() if name in names)
