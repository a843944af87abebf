"""Lowering of softmax and attention: scores on codes, masks as edges of bytes, weights times values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode

from truequant.errors import ConversionError
from truequant.fake import RuntimeSite, attention_scale, byte_table, shown_by, wide_table
from truequant.integer import nodes as program_nodes
from truequant.integer.nodes import Edge, Island
from truequant.numerics import BYTE
from truequant.planning import HIDES, attention_arguments
from truequant.transform.constants import values
from truequant.transform.contraction import operands_of
from truequant.transform.lowering import CASTS, Codes, Floats, Lowered, Lowering

MASK = Edge(float(torch.tensor(1 / BYTE)), 0, 0, BYTE)
"""Of 1.0 where a place is seen."""


def scaled(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """Scores times a number: their edge has its scale already."""
    return low.values[node.all_input_nodes[low.activation(node)]]


def masked(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """Scores whose masked places are hidden."""
    operands = [a for a in node.args[:2] if isinstance(a, GraphNode)]
    scores = next((a for a in operands if isinstance(low.values.get(a), Codes)), None)
    mask = next((a for a in operands if a is not scores), None)
    if scores is None or mask is None:
        raise ConversionError(f"'{site.plan.name}' reads a value that is not quantized")
    found = low.values[scores]
    assert isinstance(found, Codes)
    hides = site.plan.op not in ("where", "add")  # `masked_fill` hides where its mask says yes
    return with_mask(low, found, mask, site, hides=hides)


def biased(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """Scores and a bias, as values until their sum is quantized."""
    operands = [a for a in node.args[:2] if isinstance(a, GraphNode)]
    output, _, _ = low.result(site)
    assert isinstance(output, Codes)
    bias = operands[1 - (site.plan.operand or 0)]
    return _sum(low, operands, output, site, bias)


def _sum(low: Lowering, operands: Sequence[Any], output: Codes, site: RuntimeSite, bias: GraphNode) -> Codes:
    """The codes of scores and their bias, two values; hidden where the bias hides a place."""
    name = low.unique(f"{output.name}@sum")
    terms = values(low, name, operands, repeats=False)
    low.emit(program_nodes.Pointwise("add", tuple(term.name for term in terms), name))
    low.emit(program_nodes.Quantize(name, output.name))
    return with_mask(low, output, bias, site) if site.plan.bias == "hiding" else output


def with_mask(low: Lowering, scores: Codes, mask: GraphNode, site: RuntimeSite, *, hides: bool = False) -> Codes:
    """Scores behind a mask: yes and no, or numbers of which those far below 0 hide a place. hides: what its yes does."""
    source = low.values.get(mask)
    if not isinstance(source, Tensor):
        return replace(scores, masks=(*scores.masks, _edge(low, mask, site, hides)))
    seen = shown_by(source)
    shown = (~seen if hides else seen).to(torch.uint8) * BYTE
    return replace(scores, shown=(shown if scores.shown is None else shown & scores.shown).contiguous())


def _edge(low: Lowering, mask: GraphNode, site: RuntimeSite, hides: bool) -> str:
    """The edge of a mask that depends on the inputs."""
    if (mask, hides) in low.masks:
        return low.masks[mask, hides]
    source, name = low.values.get(mask), low.unique(f"@{mask.name}.shown")
    if not isinstance(source, Floats):
        raise ConversionError(
            f"'{site.plan.name}': its mask is no tensor of the program", got=type(source).__name__,
            expected="a mask that is given, stored, or computed from such",
        )  # fmt: skip
    value, edge = _seen(low, source, mask, name, hides), low.unique(name)
    low.edges[edge] = MASK
    low.emit(program_nodes.Quantize(value.name, edge))
    low.masks[mask, hides] = edge
    return edge


def _seen(low: Lowering, source: Floats, mask: GraphNode, name: str, hides: bool) -> Floats:
    """1.0 where a mask shows a place, else 0.0."""
    kind = mask.meta["val"].dtype
    steps: list[tuple[str, tuple[Any, ...]]] = []
    if kind.is_floating_point:
        steps.append(("gt.Scalar", (HIDES,)))
    elif kind != torch.bool:
        steps.append(("ne.Scalar", (0,)))
    if hides:
        steps.append(("logical_not.default", ()))
    steps.append(("to.dtype", ({"dtype": "float32"},)))
    current = source.name
    for op, rest in steps:
        output = low.unique(f"{name}.{op.partition('.')[0]}")
        low.emit(Island((current,), output, op, tuple(map(json.dumps, ({"input": 0}, *rest))), (), ()))
        current = output
    return Floats(current)


def weights(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """Scores for the products behind; as values for whatever else reads the weights."""
    source = low.input_codes(node, site)
    low.weights[node] = source
    name = site.plan.name
    if not all(_attended(low, user) for user in node.users):
        table = byte_table(source.grid).to(torch.int32)
        low.emit(program_nodes.Softmax(source.name, source.masks, source.shown, False, name, table, source.factor or 1.0, 0, 0))
    return Floats(name)


def _hands_on(low: Lowering, node: GraphNode) -> bool:
    return node.target is torch.ops.truequant.mark.default or node.target in low.tables.passing or node.target in CASTS


def _attended(low: Lowering, user: GraphNode) -> bool:
    """Whether weights end in products with values alone."""
    if _hands_on(low, user):
        return all(_attended(low, behind) for behind in user.users)
    if user.op == "call_function" and not user.users:
        return True  # a check that exporting added
    site = low.site_of(user)
    return site is not None and site.plan.action == "attend"


def attend(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """Weights times values."""
    left, right = operands_of(node)
    while left not in low.weights and _hands_on(low, left):
        left = left.all_input_nodes[0]
    scores, values = low.weights.get(left), low.values[right]
    if scores is None or not isinstance(values, Codes):
        raise ConversionError(f"'{site.plan.name}' reads a value that is not quantized")
    return _attend(low, site, scores, values, causal=False)


def _attend(low: Lowering, site: RuntimeSite, scores: Codes, values: Codes, *, causal: bool) -> Lowered:
    output, lowest, highest = low.result(site)
    table = byte_table(scores.grid)
    low.emit(
        program_nodes.Attend(
            scores.name,
            scores.masks,
            scores.shown,
            causal,
            output.name,
            table,
            scores.factor or 1.0,
            values.name,
            lowest,
            highest,
        )
    )
    return output


def softmax(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """A softmax that is an edge; along another axis than the last between movements of codes."""
    source = low.input_codes(node, site)
    assert site.plan.bits is not None
    rank, axis = node.meta["val"].dim(), node.args[1]
    assert isinstance(axis, int)
    axis %= rank
    table = wide_table(source.grid, site.plan.bits)
    output, lowest, highest = low.result(site)
    if axis == rank - 1:
        low.emit(
            program_nodes.Softmax(
                source.name, source.masks, source.shown, False, output.name, table, source.factor or 1.0, lowest, highest
            )
        )
        return output
    there = (*(a for a in range(rank) if a != axis), axis)
    back = tuple(there.index(a) for a in range(rank))
    moved = low.moved(low.unique(f"{output.name}@rows"), source)
    low.emit(program_nodes.Transpose(source.name, moved.name, there))
    rows = low.moved(low.unique(f"{output.name}@softmax"), output)
    low.emit(program_nodes.Softmax(moved.name, (), None, False, rows.name, table, source.factor or 1.0, lowest, highest))
    low.emit(program_nodes.Transpose(rows.name, output.name, back))
    return output


def attention(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """Product, softmax and product of one call."""
    given = attention_arguments(node.args, node.kwargs)
    name, grid = site.plan.name, site.scores
    assert grid is not None
    q, k, v = (low.values[given[part]] for part in ("query", "key", "value"))
    if not isinstance(q, Codes) or not isinstance(k, Codes) or not isinstance(v, Codes):
        raise ConversionError(f"'{name}' reads a value that is not quantized")
    shape = given["key"].meta["val"].shape
    rank = len(shape)
    if given["enable_gqa"]:
        groups, heads = int(given["query"].meta["val"].shape[-3]), int(shape[-3])
        k, v = (
            _repeated(low, c, f"{name}@{part}", rank - 3, heads, groups // heads)
            for c, part in ((k, "key_heads"), (v, "value_heads"))
        )
    keys = low.moved(low.unique(f"{name}@keys"), k)
    low.emit(program_nodes.Transpose(k.name, keys.name, (*range(rank - 2), rank - 1, rank - 2)))
    mask, scale = given["attn_mask"], attention_scale(_with_values(given))
    if site.plan.bias is not None:
        product = low.unique(f"{name}@product")
        low.emit(program_nodes.MatMul(q.name, keys.name, product, 0, 0, scale))
        scores = _sum(low, [Floats(product), mask], low.codes(f"{name}.scores", grid), site, mask)
        return _attend(low, site, scores, v, causal=bool(given["is_causal"]))
    scores = low.codes(f"{name}.scores", grid, scale)
    low.emit(program_nodes.MatMul(q.name, keys.name, scores.name, grid.scheme.qmin, grid.scheme.qmax))
    scores = scores if mask is None else with_mask(low, scores, mask, site)
    return _attend(low, site, scores, v, causal=bool(given["is_causal"]))


def _with_values(given: dict[str, Any]) -> dict[str, Any]:
    """The query as a tensor of its shape."""
    return given | {"query": given["query"].meta["val"]}


def _repeated(low: Lowering, source: Codes, name: str, axis: int, heads: int, times: int) -> Codes:
    """Codes of a group of heads, once for each of them."""
    if times == 1:
        return source
    moved = low.moved(low.unique(name), source)
    assert isinstance(moved, Codes)
    places = tuple(head for head in range(heads) for _ in range(times))
    low.emit(program_nodes.Take(source.name, moved.name, axis, places))
    return moved


ACTIONS = {
    "scaled": scaled, "masked": masked, "weights": weights, "attend": attend, "softmax": softmax, "attention": attention,
    "biased": biased,
}  # fmt: skip
