"""Functions that read nothing of a tensor but its shape, dtype or device: what it holds has no part in their result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_BEHIND = frozenset((Tensor.type_as, Tensor.to, Tensor.expand_as, Tensor.view_as, Tensor.reshape_as))
"""Functions of one tensor, for which others are an example."""
_BEFORE = frozenset((Tensor.new_tensor,))
"""Functions whose first argument is the example."""
LIKE = _BEHIND | _BEFORE


@dataclass(frozen=True, slots=True)
class Like:
    """Where a tensor stood that is only an example, among the arguments of a recorded call."""

    shape: tuple[int, ...]


def without_examples(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function of `LIKE` with `Like` for each tensor that is an example."""
    first, *rest = args
    if function in _BEFORE:
        return (_example(first), *rest), dict(kwargs)
    return (first, *map(_example, rest)), {k: _example(v) for k, v in kwargs.items()}


def _example(value: Any) -> Any:
    return Like(tuple(value.shape)) if isinstance(value, Tensor) else value
