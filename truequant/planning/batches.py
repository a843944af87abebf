"""From an item of a data loader to the inputs of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from truequant.planning.capture import as_arguments


def arguments_of(item: Any, count: int, inputs: Callable[[Any], Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`args, kwargs` of an item for a model with `count` input tensors: `(x, y)` of a model with one input gives `x`."""
    if inputs is not None:
        return as_arguments(inputs(item))
    if isinstance(item, (tuple, list)) and len(item) == 2 and count == 1:
        return (item[0],), {}
    return as_arguments(item)
