"""In which order a file holds the axes of a program's tensors: LiteRT's kernels read channels last.

An order names for each axis of the stored tensor the axis of the program's. A transposition of the program is another order of
the same tensor; a reshape keeps the stored order where its blocks of axes lie side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Order = tuple[int, ...]
Sizes = tuple[int | None, ...]
_UNKNOWN = 2**31 - 1  # a prime that stands for a size that follows the batch


def plain(rank: int) -> Order:
    """The program's own order."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """`(N, *space, C)` of `(N, C, *space)`."""
    return (0, *range(2, rank), 1)


def stored(shape: Sizes, order: Order) -> Sizes:
    """The sizes as the file holds them."""
    return tuple(shape[axis] for axis in order)


def same_but_for_ones(shape: Sizes, order: Order, wanted: Order) -> bool:
    """Whether nothing but axes of one element stands elsewhere, so that a reshape is enough."""
    return [a for a in order if shape[a] != 1] == [a for a in wanted if shape[a] != 1]


def transposed(order: Order, permutation: Sequence[int]) -> Order:
    """The order of the same stored tensor for a program that has permuted its axes."""
    place = {axis: new for new, axis in enumerate(permutation)}
    return tuple(place[axis] for axis in order)


def reshaped(before: Sizes, order: Order, after: Sizes) -> Order | None:
    """The order of a reshaped tensor whose stored elements stay where they are; None where they would have to move."""
    blocks = _blocks(before, after)
    if blocks is None:
        return None
    where = {axis: block for block, (olds, _) in enumerate(blocks) for axis in olds}
    kept = [axis for axis in order if before[axis] != 1]
    found: list[int] = []
    while kept:
        olds, news = blocks[where[kept[0]]]
        if kept[: len(olds)] != list(olds):
            return None
        kept, found = kept[len(olds) :], [*found, *news]
    for axis, size in enumerate(after):
        if size == 1:
            found.insert(found.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(found)


def _blocks(before: Sizes, after: Sizes) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """The smallest runs of axes, without those of one element, that hold the same elements before and after."""
    left = [(axis, _UNKNOWN if n is None else n) for axis, n in enumerate(before) if n != 1]
    right = [(axis, _UNKNOWN if n is None else n) for axis, n in enumerate(after) if n != 1]
    blocks = []
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        while (x := math.prod(n for _, n in a)) != (y := math.prod(n for _, n in b)):
            behind, some = (left, a) if x < y else (right, b)
            if not behind:
                return None
            some.append(behind.pop(0))
        blocks.append((tuple(axis for axis, _ in a), tuple(axis for axis, _ in b)))
    return None if left or right else blocks
