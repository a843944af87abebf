"""From an item of a data loader to the inputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from truequant.errors import ArgumentTypeError
from truequant.planning.capture import as_arguments


def items_of(batches: Iterable[Any], where: str) -> Iterable[Any]:
    """The batches as they are; `ArgumentTypeError` for one batch in its place, which iterating would cut in pieces."""
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        one = isinstance(batches, (Tensor, Mapping))
        shape = f" of shape {tuple(batches.shape)}" if isinstance(batches, Tensor) else ""
        raise ArgumentTypeError(
            f"{where}: batches are no list of batches",
            got=f"{'one ' if one else ''}{type(batches).__name__}{shape}",
            expected="a DataLoader, a list or another iterable of batches",
            fix=f"{where}(…, [batch])" if one else None,
        )
    return batches


def arguments_of(item: Any, count: int, inputs: Callable[[Any], Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`args, kwargs` of an item for a model with `count` input tensors: `(x, y)` of a model with one input gives `x`."""
    if inputs is not None:
        return as_arguments(inputs(item))
    if isinstance(item, (tuple, list)) and len(item) == 2 and count == 1:
        return (item[0],), {}
    return as_arguments(item)
