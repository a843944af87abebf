"""Nodes that move codes and keep scale and zero point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.edge import Edge
from truequant.integer.nodes.base import Node, Shape, Unary, axis_of
from truequant.integer.nodes.checks import MAX_SIZE, check_meaning, check_sizes
from truequant.integer.storage import storage


@dataclass(frozen=True, slots=True, eq=False)
class Moving(Node):
    """A node that moves codes or values alike. Kinds say how in `check_fields`, `output_shape` and `moved`."""

    reading = "either"
    writing = "either"

    def check(self, edges: Mapping[str, Edge]) -> None:
        check_meaning(self, edges)
        self.check_fields()

    def check_fields(self) -> None:
        """ConversionError unless the fields can be."""
        raise NotImplementedError

    def layout(self, shapes: Sequence[Shape], dtypes: Sequence[torch.dtype]) -> tuple[Shape, torch.dtype]:
        return self.output_shape(shapes), dtypes[0]

    def moved(self, x: Tensor) -> Tensor:
        """What the node makes of a tensor, of codes or of values."""
        raise NotImplementedError

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        return self.stored(self.moved(*inputs), edges)

    def stored(self, x: Tensor, edges: Mapping[str, Edge]) -> Tensor:
        """Codes in the storage of the output, values as they are."""
        edge = edges.get(self.output)
        return x if edge is None else x.to(storage(edge))


@dataclass(frozen=True, slots=True)
class Reshape(Moving, Unary):
    """`shape`: 0 keeps that axis of the input, one -1 is what remains (ONNX's rule)."""

    shape: tuple[int, ...]

    def check_fields(self) -> None:
        check_sizes(self, "shape", self.shape, -1)
        if self.shape.count(-1) > 1:
            raise ConversionError(f"{self.label}: more than one size left open", got=self.shape, expected="at most one -1")

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The target with its 0 and -1 filled in, also where an axis is empty."""
        shape = shapes[0]
        kept = {axis for axis, size in enumerate(self.shape) if size == 0}
        if any(axis >= len(shape) for axis in kept):
            raise self.misfit(shape, f"axes to keep for {self.shape}")
        sizes = [shape[axis] if axis in kept else size for axis, size in enumerate(self.shape)]
        # Kept axes cancel out, so that an empty batch still tells what -1 stands for.
        remaining = math.prod(size for axis, size in enumerate(shape) if axis not in kept)
        named = math.prod(size for axis, size in enumerate(sizes) if axis not in kept and size != -1)
        if -1 in sizes:
            if named == 0 or remaining % named:
                raise self.misfit(shape, f"elements for {self.shape}")
            sizes[sizes.index(-1)] = remaining // named
        elif named != remaining:
            raise self.misfit(shape, f"elements for {self.shape}")
        return tuple(sizes)

    def moved(self, x: Tensor) -> Tensor:
        return x.reshape(self.output_shape([tuple(x.shape)]))


@dataclass(frozen=True, slots=True)
class Transpose(Moving, Unary):
    """Axis i of the output is axis `permutation[i]` of the input."""

    permutation: tuple[int, ...]

    def check_fields(self) -> None:
        if sorted(self.permutation) != list(range(len(self.permutation))):
            raise ConversionError(f"{self.label}: not a permutation", got=self.permutation)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape = shapes[0]
        if len(self.permutation) != len(shape):
            raise self.misfit(shape, f"{len(self.permutation)} axes")
        return tuple(shape[axis] for axis in self.permutation)

    def moved(self, x: Tensor) -> Tensor:
        return x.permute(self.permutation)


@dataclass(frozen=True, slots=True)
class Slice(Moving, Unary):
    """`input[begin:end:step]` along `axis`; `end` None is the axis' end."""

    axis: int
    begin: int
    end: int | None
    step: int

    def check_fields(self) -> None:
        check_sizes(self, "step", (self.step,), 1)
        check_sizes(self, "begin and end", (self.begin, 0 if self.end is None else self.end), -MAX_SIZE)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape, axis = shapes[0], axis_of(self, self.axis, shapes[0])
        length = len(range(*slice(self.begin, self.end, self.step).indices(shape[axis])))
        return (*shape[:axis], length, *shape[axis + 1 :])

    def moved(self, x: Tensor) -> Tensor:
        at = [slice(None)] * x.dim()
        at[self.axis] = slice(self.begin, self.end, self.step)
        return x[tuple(at)]


@dataclass(frozen=True, slots=True)
class Take(Moving, Unary):
    """`input[indices]` along `axis`, indices not negative."""

    axis: int
    indices: tuple[int, ...]

    def check_fields(self) -> None:
        check_sizes(self, "indices", self.indices, 0)
        if not self.indices:
            raise ConversionError(f"{self.label}: nothing to take")

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape, axis = shapes[0], axis_of(self, self.axis, shapes[0])
        if max(self.indices) >= shape[axis]:
            raise self.misfit(shape, f"more than {max(self.indices)} on axis {axis}")
        return (*shape[:axis], len(self.indices), *shape[axis + 1 :])

    def moved(self, x: Tensor) -> Tensor:
        return x.index_select(self.axis, torch.tensor(self.indices, device=x.device))


@dataclass(frozen=True, slots=True)
class Upsample(Moving, Unary):
    """Each code repeated `factors` times along the last axes: nearest neighbour."""

    factors: tuple[int, ...]

    def check_fields(self) -> None:
        check_sizes(self, "factors", self.factors, 1)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape, kept = shapes[0], len(shapes[0]) - len(self.factors)
        if kept < 0:
            raise self.misfit(shape, f"at least {len(self.factors)} axes")
        return (*shape[:kept], *(n * f for n, f in zip(shape[kept:], self.factors, strict=True)))

    def moved(self, x: Tensor) -> Tensor:
        for axis, factor in enumerate(reversed(self.factors), start=1):
            x = x.repeat_interleave(factor, dim=-axis)
        return x


@dataclass(frozen=True, slots=True)
class DepthToSpace(Moving, Unary):
    """`(N, C * prod(block), *space)` to `(N, C, *(space * block))`: channels move into space, the first block axis slowest.

    phases_first: the channels of one place of a block lie side by side, and not the places of one channel.
    """

    block: tuple[int, ...]
    phases_first: bool = False

    def check_fields(self) -> None:
        check_sizes(self, "block", self.block, 1)
        if not self.block:
            raise ConversionError(f"{self.label}: no block", expected="a size for each spatial axis")

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape, rank, depth = shapes[0], len(self.block), math.prod(self.block)
        if len(shape) != rank + 2 or shape[1] % depth:
            raise self.misfit(shape, f"{rank + 2} axes, a multiple of {depth} on axis 1")
        return (shape[0], shape[1] // depth, *(n * b for n, b in zip(shape[2:], self.block, strict=True)))

    def moved(self, x: Tensor) -> Tensor:
        rank, (batch, channels, *space) = len(self.block), x.shape
        left = channels // math.prod(self.block)
        if self.phases_first:
            x = x.reshape(batch, -1, left, *space).transpose(1, 2)
        x = x.reshape(batch, left, *self.block, *space)
        pairs = [axis for i in range(rank) for axis in (2 + rank + i, 2 + i)]
        return x.permute(0, 1, *pairs).reshape(batch, left, *(n * b for n, b in zip(space, self.block, strict=True)))


@dataclass(frozen=True, slots=True)
class Concat(Moving):
    """Edges of one scale and zero point, joined along `axis`."""

    inputs: tuple[str, ...]
    output: str
    axis: int

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inputs

    def check(self, edges: Mapping[str, Edge]) -> None:
        if self.output in edges and len({edges[name] for name in (*self.inputs, self.output)}) != 1:
            raise ConversionError(f"{self.label}: its edges differ in scale or zero point")
        if not self.inputs:
            raise ConversionError(f"{self.label}: nothing to join")

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        first = shapes[0]
        axis = axis_of(self, self.axis, first)
        for shape in shapes:
            if len(shape) != len(first) or (*shape[:axis], *shape[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]):
                raise ConversionError(
                    f"{self.label} cannot join its inputs",
                    got=f"shapes {list(shapes)}",
                    expected=f"equal sizes but on axis {axis}",
                )
        return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        return torch.cat([self.stored(x, edges) for x in inputs], self.axis)


@dataclass(frozen=True, slots=True)
class Pad(Unary):
    """Real zeros, the code `z`, before and after each of the last axes: `(begin, end)` of the last axis comes last."""

    padding: tuple[tuple[int, int], ...]

    def check(self, edges: Mapping[str, Edge]) -> None:
        check_meaning(self, edges)
        check_sizes(self, "padding", tuple(n for pair in self.padding for n in pair), 0)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape, kept = shapes[0], len(shapes[0]) - len(self.padding)
        if kept < 0:
            raise self.misfit(shape, f"at least {len(self.padding)} axes")
        return (*shape[:kept], *(n + sum(pair) for n, pair in zip(shape[kept:], self.padding, strict=True)))

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        edge = edges[self.output]
        return padded(self.padding, inputs[0].to(storage(edge)), edge.zero_point)


PadMode = Literal["reflect", "edge", "wrap"]


@dataclass(frozen=True, slots=True)
class PadRepeated(Moving, Unary):
    """The tensor's own codes before and after each of the last axes: reflected at its border, the border's, or from its
    other end; `(begin, end)` of the last axis comes last.
    """

    padding: tuple[tuple[int, int], ...]
    mode: PadMode

    def check_fields(self) -> None:
        check_sizes(self, "padding", tuple(n for pair in self.padding for n in pair), 0)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape, kept = shapes[0], len(shapes[0]) - len(self.padding)
        if kept < 0:
            raise self.misfit(shape, f"at least {len(self.padding)} axes")
        for n, pair in zip(shape[kept:], self.padding, strict=True):
            if any(pair) and max(pair) > {"reflect": n - 1, "edge": MAX_SIZE * (n > 0), "wrap": n}[self.mode]:
                raise self.misfit(shape, f"room for {pair} places more by {self.mode}")
        return (*shape[:kept], *(n + sum(pair) for n, pair in zip(shape[kept:], self.padding, strict=True)))

    def moved(self, x: Tensor) -> Tensor:
        first = x.dim() - len(self.padding)
        for index, (begin, end) in enumerate(self.padding):
            if begin or end:
                axis = first + index
                x = x.index_select(axis, self.places(index, x.shape[axis]).to(x.device))
        return x

    def places(self, index: int, n: int) -> Tensor:
        """Which of the `n` places of the axis that `padding[index]` is about stands at each place of the result."""
        begin, end = self.padding[index]
        return self._of(torch.arange(-begin, n + end), n)

    def _of(self, places: Tensor, n: int) -> Tensor:
        """The places within `0 … n - 1` that stand at `places`."""
        if self.mode == "edge":
            return places.clamp(0, n - 1)
        if self.mode == "wrap":
            return places.remainder(n)
        return n - 1 - (n - 1 - places.abs()).abs()


def padded(padding: tuple[tuple[int, int], ...], x: Tensor, value: float = 0.0) -> Tensor:
    """The last axes with `value` before and behind."""
    return torch.nn.functional.pad(x, [side for pair in reversed(padding) for side in pair], value=value)
