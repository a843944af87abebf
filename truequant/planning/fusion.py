"""What is computed together with what.

The result of an op that computes codes runs through a chain of single readers: a BatchNorm right behind a layer, then
clamps and data movement in any order. All of them commute with quantization, so the one quantizer of the chain sits at its
end, while in evaluation the op at its head already emits the codes of that grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch

from truequant.planning.actions import MOVES, OF_SCORES
from truequant.planning.affine import of_channels
from truequant.planning.batch_norms import why_not_fixed
from truequant.planning.formulas import Affine
from truequant.planning.graph import Graph, Node
from truequant.planning.ops import LINEAR_OPS, Role


def fuse(graph: Graph) -> None:
    """Fill in `fused`, `norm` and `bounds` of each node that heads a chain, and `fused_into` of the others."""
    for node in graph.nodes:
        if node.action == "layer":
            _fold(node, graph)
    for node in graph.nodes:
        if node.written is not None:
            _scaled(node, graph)
    for node in graph.nodes:
        if node.action == "norm" and node.fused_into is None:
            _as_own_site(node, graph)
    for node in graph.nodes:
        if node.integer:
            _follow(node, graph)
    for node in graph.nodes:
        if node.action == "weights" and node.writes[0] not in graph.outputs and not graph.readers.get(node.writes[0]):
            behind = (n for n in graph.nodes if n.action == "attend" and n.part is not None and n.part.softmax == node.index)
            node.fused_into = next(behind, None)  # nothing but products reads it, and they read its scores
    for node in graph.nodes:
        if node.action in MOVES and node.fused_into is None:
            graph.join([*node.reads, *node.writes])
        elif node.integer:
            chain = [node, *node.fused]
            graph.join(value for link in chain for value in link.writes)


def _fold(layer: Node, graph: Graph) -> None:
    """The map of channels that alone reads what a layer writes, moved or not, is computed with it: a BatchNorm, factors and
    biases.
    """
    moved = _moved(layer, graph)
    norm = _only_map((moved[-1] if moved else layer).writes[0], graph)
    if norm is not None:
        _take(layer, moved, norm, _axis(layer, moved, graph), graph)


def _only_map(value: int, graph: Graph) -> Node | None:
    """The map of channels that alone reads a value."""
    readers = graph.readers.get(value, [])
    alone = len(readers) == 1 and readers[0].action == "norm" and value not in graph.outputs
    return readers[0] if alone else None


def _take(head: Node, moved: Sequence[Node], first: Node, axis: int, graph: Graph) -> bool:
    """Compute the maps from `first` on with `head`, or in its place where that is `first`; whether there is any such."""
    links: list[Node] = []
    following: Node | None = first
    if first.call.op.role is Role.NORM and axis == 1 and _why_not_fixed(first, graph) is None:
        links = [first]
        head.norm = None if head is first else first
        following = _only_map(first.writes[0], graph)
    chain = _chain(following, axis, graph) if following is not None else None
    if chain is not None:
        head.affine = chain[0]
        links += chain[1]
    for link in [*moved, *links] if links else []:
        if link is not head:
            link.fused_into = head
            head.fused.append(link)
    return bool(links)


def _chain(first: Node, axis: int, graph: Graph, *, biased: bool = True) -> tuple[Affine, list[Node]] | None:
    """The map of channels along `axis` that `first` begins, and its nodes, each the only reader of the one before it.

    biased: whether it may add a bias.
    """
    found, links = Affine(), list[Node]()
    readers = [first]
    while len(readers) == 1 and readers[0].action == "norm":
        (node,) = readers
        step = of_channels(node.call, graph.shape(node.reads[0]))
        if step is None or step.axis != axis or (step.affine.bias is not None and not biased):
            break
        found = found.then(step.affine)
        links.append(node)
        readers = [] if node.writes[0] in graph.outputs else graph.readers.get(node.writes[0], [])
    return (found, links) if links else None


def _scaled(norm: Node, graph: Graph) -> None:
    """A norm written by hand is computed with the gain and bias behind it: those of the one axis along which it normalizes."""
    rule = norm.norm_rule
    assert rule is not None
    first = _only_map(norm.writes[0], graph)
    if rule.kind == "l2" or len(rule.axes) != 1 or first is None:
        return
    chain = _chain(first, rule.axes[0] + graph.rank(norm.writes[0]), graph, biased=rule.kind == "layer")
    if chain is None:
        return
    norm.affine = chain[0] if norm.affine is None else norm.affine.then(chain[0])
    for link in chain[1]:
        link.fused_into = norm
        norm.fused.append(link)


def _why_not_fixed(norm: Node, graph: Graph) -> str | None:
    return why_not_fixed(norm.call, norm.leaf, graph.modules[norm.call.owner], graph.modules[""])


def _moved(layer: Node, graph: Graph) -> list[Node]:
    """The movements that permute the axes of what a layer writes, each the only reader of the one before it."""
    found: list[Node] = []
    value = layer.writes[0]
    while value not in graph.outputs:
        readers = graph.readers.get(value, [])
        if len(readers) != 1 or readers[0].action != "movement" or _permutation(readers[0], graph) is None:
            return found
        found.append(readers[0])
        value = readers[0].writes[0]
    return found


def _axis(layer: Node, moved: Sequence[Node], graph: Graph) -> int:
    """The axis of a layer's channels behind these movements."""
    axis = graph.rank(layer.writes[0]) - 1 if layer.call.op.name in LINEAR_OPS else 1
    for node in moved:
        permutation = _permutation(node, graph)
        assert permutation is not None
        axis = permutation.index(axis)
    return axis


def _permutation(node: Node, graph: Graph) -> tuple[int, ...] | None:
    """The axes that a movement puts in another order, by their places before; None where it does anything else."""
    call, rank = node.call, graph.rank(node.reads[0])
    if call.op.name not in ("permute", "transpose", "t", "movedim"):
        return None
    function, probe = call.op.functions[0], torch.empty(tuple(range(2, rank + 2)), device="meta")
    if call.op.name == "t":
        return (1, 0) if rank == 2 else None
    if call.op.name == "permute" and len(call.args) > 2:  # `x.permute(0, 2, 1)`
        moved = probe.permute(*call.args[1:])
    else:
        moved = function(probe, *call.args[1:], **{k: v for k, v in call.kwargs.items() if k not in ("input", "self")})
    return tuple(n - 2 for n in moved.shape)


def _as_own_site(norm: Node, graph: Graph) -> None:
    """A map of channels on codes is an integer layer of one weight a channel."""
    if norm.call.op.role is Role.NORM and (why := _why_not_fixed(norm, graph)) is not None:
        norm.action, norm.reason = "float", why
        return
    before = graph.writer.get(norm.reads[0])
    on_codes = norm.reads[0] in graph.on_codes and before is not None and before.action != "float"
    if on_codes and graph.rank(norm.reads[0]) <= 5 and _take(norm, (), norm, 1, graph):
        norm.action, norm.reason = "affine", "integer factor and bias a channel"
    else:
        norm.action, norm.reason = "float", _why_not_folded(norm, graph)


def _why_not_folded(norm: Node, graph: Graph) -> str:
    """Why a map of channels is computed with no layer."""
    value = norm.reads[0]
    before = graph.writer.get(value)
    while before is not None and before.action in MOVES and len(before.reads) == 1:
        value = before.reads[0]
        before = graph.writer.get(value)
    if before is None or before.action != "layer":
        return "stands alone: no layer before it to fold into"
    if value in graph.outputs or len(graph.readers.get(value, [])) > 1:
        return f"does not fold into '{before.name}', whose result is read elsewhere too"
    return f"does not fold into '{before.name}': it is a map of another axis than that of its channels"


def _follow(node: Node, graph: Graph) -> None:
    if node.action == "attention":
        return  # libraries repeat heads and reshape otherwise where they are traced: sites behind count other calls then
    value = node.end
    while value not in graph.outputs:
        readers = graph.readers.get(value, [])
        if len(readers) != 1:
            return
        (reader,) = readers
        if reader.action == "clamp":
            node.bounds = _intersect(node.bounds, reader.bounds)
        elif reader.action in OF_SCORES:
            node.factor *= reader.part.factor if reader.part is not None else 1.0
        elif not (reader.action == "movement" and len(reader.writes) == 1):
            return
        node.fused.append(reader)
        reader.fused_into = node
        value = reader.writes[0]


def _intersect(a: tuple[float | None, float | None], b: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    """The clamp that `b` after `a` is: each end of `a` clamped by `b`."""

    low, high = (-inf if b[0] is None else b[0]), (inf if b[1] is None else b[1])

    def through(end: float | None, open_end: float | None) -> float | None:
        return open_end if end is None else min(max(end, low), high)

    return through(a[0], b[0]), through(a[1], b[1])
