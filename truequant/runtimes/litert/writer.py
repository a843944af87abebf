"""What is written so far of a program's file: the tensor of each edge, and the order in which it holds its axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Edge, Node
from truequant.runtimes.fresh_names import FreshNames
from truequant.runtimes.litert.flatbuffer import File
from truequant.runtimes.litert.orders import Order, Sizes, channels_last, plain, same_but_for_ones, stored
from truequant.runtimes.onnx.shapes import dynamic_shapes


class Writer:
    """index, order: of each edge that is written. flat: the sizes `(C, *space)` of edges that are stored `(N, *space, C)` as
    rows, which only linear layers read.
    """

    def __init__(self, program: IntegerProgram) -> None:
        self.program, self.file = program, File()
        self.shapes = dynamic_shapes(program)[0]
        self.index: dict[str, int] = {}
        self.order: dict[str, Order] = {}
        self.flat: dict[str, Sizes] = {}
        self._moved: dict[tuple[str, Order], int] = {}
        self.fresh = FreshNames()

    def edge(self, name: str) -> Edge:
        return self.program.edges[name]

    def integers(self, name: str, values: Any) -> int:
        """A constant of int32, sizes and places."""
        return self.file.constant(self.fresh(name), np.asarray(values, np.int32))

    def tensor(self, name: str, sizes: Sizes, like: str) -> int:
        """A tensor of codes with stored sizes and the grid of an edge."""
        edge = self.edge(like)
        return self.file.tensor(self.fresh(name), sizes, "int8", np.float32(edge.scale), edge.zero_point)

    def write(self, name: str, order: Order) -> int:
        """The tensor of an edge, stored in that order."""
        self.index[name], self.order[name] = self.tensor(name, stored(self.shapes[name], order), name), order
        return self.index[name]

    def alias(self, name: str, index: int, order: Order) -> None:
        """An edge whose codes another tensor holds already."""
        self.index[name], self.order[name] = index, order

    def read(self, name: str, order: Order | None = None) -> int:
        """The tensor of an edge in an order, by default its own; moved where it is stored in another one."""
        if order is None or order == self.order[name]:
            return self.index[name]
        if (name, order) not in self._moved:
            before, shape, source = self.order[name], self.shapes[name], self.index[name]
            sizes = stored(shape, order)
            made = self.tensor(f"{name}.moved", sizes, name)
            if same_but_for_ones(shape, before, order):
                self.reshape(source, sizes, made, name)
            else:
                places = self.integers(f"{name}.axes", [before.index(axis) for axis in order])
                self.file.op("TRANSPOSE", [source, places], made, 2, "TransposeOptions")
            self._moved[name, order] = made
        return self._moved[name, order]

    def plain(self, name: str) -> int:
        """An edge in the program's own order."""
        return self.read(name, plain(len(self.shapes[name])))

    def last(self, name: str) -> int:
        """An edge with its channels last."""
        return self.read(name, channels_last(len(self.shapes[name])))

    def reshape(self, source: int, sizes: Sizes, output: int, name: str) -> int:
        """The same elements in other sizes, of which one at most follows the batch."""
        if sizes.count(None) > 1:
            raise ExportError(
                f"'{name}': more than one size is left open in LiteRT's file", got=f"sizes {sizes}", expected="the batch alone",
                fix="tq.prepare(…, dynamic=…) with the batch alone",
            )  # fmt: skip
        target = [-1 if n is None else n for n in sizes]
        return self.file.op(
            "RESHAPE", [source, self.integers(f"{name}.sizes", target)], output, options="ReshapeOptions", newShape=target
        )


def refuse(node: Node, why: str, fix: str = "leave it out of the part that runs in LiteRT") -> ExportError:
    """The error of a node that has no exact form."""
    return ExportError(f"{node.label} has no exact form in LiteRT", got=why, fix=fix)


def fixed(node: Node, sizes: Sequence[int | None]) -> tuple[int, ...]:
    """Sizes of which none may follow the inputs."""
    if None in sizes:
        raise refuse(node, f"a size of {tuple(sizes)} follows the inputs", "tq.prepare(…, dynamic=…) with the batch alone")
    return tuple(n for n in sizes if n is not None)
