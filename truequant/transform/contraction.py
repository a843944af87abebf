"""Lowering of einsum: codes are brought into `(batch, rows, sum)` and `(batch, sum, columns)`, multiplied, and brought back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.fx import Node as GraphNode
from torch.utils import _pytree as pytree

from truequant.integer import nodes as program_nodes
from truequant.planning import contraction
from truequant.transform.lowering import Codes, Lowering


def operands_of(node: GraphNode) -> tuple[GraphNode, GraphNode]:
    """The two factors of a product in the graph, in order."""
    first, second = (leaf for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, GraphNode))
    return first, second


def contract(low: Lowering, node: GraphNode, operands: tuple[Codes, Codes], output: Codes, bounds: tuple[int, int]) -> None:
    """Emit the nodes of an einsum whose result is the edge `output`."""
    form = contraction(node.args[0])
    assert form is not None  # planning has seen to it
    length: dict[str, Any] = {}
    for letters, operand in zip((form.left, form.right), operands_of(node), strict=True):
        length |= dict(zip(letters, operand.meta["val"].shape, strict=True))
    steps = _Steps(low, output.name, length)
    left = steps.arranged(operands[0], form.left, (form.batch, form.rows, form.summed))
    right = steps.arranged(operands[1], form.right, (form.batch, form.summed, form.columns))
    made = form.batch + form.rows + form.columns
    plain = len(form.rows) == len(form.columns) == 1 and made == form.output
    product = output if plain else low.codes(low.unique(f"{output.name}@product"), output.grid, output.factor)
    low.emit(program_nodes.MatMul(left.name, right.name, product.name, *bounds))
    if plain:
        return
    if len(form.rows) != 1 or len(form.columns) != 1:
        last = made == form.output
        target = output if last else low.codes(low.unique(f"{output.name}@apart"), output.grid, output.factor)
        sizes = [0] * len(form.batch) + [steps.size(c) for c in form.rows + form.columns]
        low.emit(program_nodes.Reshape(product.name, target.name, tuple(sizes)))
        product = target
        if last:
            return
    low.emit(program_nodes.Transpose(product.name, output.name, tuple(made.index(c) for c in form.output)))


class _Steps:
    def __init__(self, low: Lowering, name: str, length: dict[str, Any]) -> None:
        self.low, self.name, self.length = low, name, length

    def size(self, letter: str) -> int:
        """The length of an axis, -1 where it is dynamic."""
        length = self.length[letter]
        return length if isinstance(length, int) else -1

    def joined(self, letters: str) -> int:
        sizes = [self.size(c) for c in letters]
        return -1 if -1 in sizes else math.prod(sizes)

    def arranged(self, source: Codes, letters: str, parts: Sequence[str]) -> Codes:
        """An operand with its axes in the order of `parts`, the last two of them one axis each."""
        batch, *matrix = parts
        wanted = "".join(parts)
        if wanted != letters:
            moved = self.low.codes(self.low.unique(f"{self.name}@transposed"), source.grid, source.factor)
            self.low.emit(program_nodes.Transpose(source.name, moved.name, tuple(letters.index(c) for c in wanted)))
            source = moved
        if any(len(part) != 1 for part in matrix):
            shaped = self.low.codes(self.low.unique(f"{self.name}@matrix"), source.grid, source.factor)
            sizes = (*(0 for _ in batch), *(self.joined(part) for part in matrix))
            self.low.emit(program_nodes.Reshape(source.name, shaped.name, sizes))
            source = shaped
        return source
