"""What every node of an integer program is.

A kind of node is a frozen dataclass and stands at home in a file of its family, with everything that this package knows of
it: what its fields must be (`check`), what it writes (`output_shape`), what it computes (`run`), and the facts below. Whoever
walks a program asks the node. What a file holds of it are its fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.edge import Edge

Shape = tuple[int, ...]
Content = Literal["codes", "values", "either"]
"""What a name holds: codes of an edge, or float32 values. "either": as the name that the node writes does."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One step of a program. It reads and writes edges unless `reading` and `writing` say otherwise.

    `low` and `high`, where a node has them, are the codes between which the result is clamped: a fused ReLU or clip is
    nothing else. Kinds override `check`, `output_shape` and `run`, or inherit them from their family.
    """

    reading: ClassVar[Content] = "codes"
    writing: ClassVar[Content] = "codes"
    rounds_once: ClassVar[bool] = False
    """Whether each of its values is one IEEE operation on numbers that it reads, which every runtime rounds alike."""
    sums: ClassVar[bool] = False
    """Whether it sums codes: integers in any order give one sum, floats do not."""

    if TYPE_CHECKING:  # kinds have it as a field, in its place among their fields: files and positional arguments know it

        @property
        def output(self) -> str:
            """The name that the node writes."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names that the node reads, in order."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The node as errors name it: `Conv 'features.0'`."""
        return f"{type(self).__name__} '{self.output}'"

    def check(self, edges: Mapping[str, Edge]) -> None:
        """ConversionError unless the node's fields and tensors agree with each other and with its edges."""
        raise NotImplementedError

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape that the node writes, from those that it reads. ConversionError where it cannot read such inputs."""
        raise NotImplementedError

    def layout(self, shapes: Sequence[Shape], dtypes: Sequence[torch.dtype]) -> tuple[Shape, torch.dtype]:
        """Shape and dtype of what the node writes, from those that it reads. A dtype says something of values alone."""
        return self.output_shape(shapes), torch.float32

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """What the node writes. The inputs have shapes that `output_shape` accepts; codes come in the storage of their edge."""
        raise NotImplementedError

    def renamed(self, output: str) -> Self:
        """The same node, writing another name."""
        changes: dict[str, Any] = {"output": output}
        return replace(self, **changes)

    def to(self, device: torch.device) -> Self:
        """The same node with its tensors on a device."""
        held = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved: dict[str, Any] = {name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)}
        for name, value in held.items():
            if isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value):
                moved[name] = tuple(item.to(device) for item in value)
        return replace(self, **moved) if moved else self

    def misfit(self, shape: Shape, expected: str) -> ConversionError:
        """The error for an input of a shape that the node cannot read."""
        return ConversionError(f"{self.label} cannot read its input", got=f"shape {shape}", expected=expected)


@dataclass(frozen=True, slots=True, eq=False)
class Unary(Node):
    """A node that reads one name."""

    input: str
    output: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, slots=True, eq=False)
class Binary(Node):
    """A node that reads two edges."""

    left: str
    right: str
    output: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.left, self.right)


@dataclass(frozen=True, slots=True, eq=False)
class Weighted(Unary):
    """A layer that holds a weight of integers, int8 `(out, …)`, and its float32 scales."""

    weight: Tensor
    weight_scale: Tensor

    def features_of(self, shape: Shape) -> Shape:
        """What a weight `(out, in)` makes of `(…, in)`: `(…, out)`."""
        if not shape or shape[-1] != self.weight.shape[1]:
            raise self.misfit(shape, f"a last axis of {self.weight.shape[1]}")
        return (*shape[:-1], self.weight.shape[0])


def broadcast(node: Node, left: Shape, right: Shape) -> Shape:
    """The shape of two inputs broadcast. ConversionError, naming the node, where they do not."""
    rank = max(len(left), len(right))
    sizes = []
    for a, b in zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True):
        if a != b and 1 not in (a, b):
            raise ConversionError(
                f"{node.label} cannot join its inputs", got=f"shapes {left} and {right}", expected="shapes that broadcast"
            )
        sizes.append(b if a == 1 else a)
    return tuple(sizes)


def axis_of(node: Node, axis: int, shape: Shape) -> int:
    """An axis counted from the front. ConversionError, naming the node, where the shape lacks it."""
    if not -len(shape) <= axis < len(shape):
        raise node.misfit(shape, f"an axis {axis}")
    return axis % len(shape)
