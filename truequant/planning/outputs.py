"""What a model takes and returns, whatever structure it has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from truequant.planning.structures import tree_of


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in the structure of what a model takes or returns, in order."""
    found: list[Tensor] = []

    def leaf(item: Any) -> None:
        if isinstance(item, Tensor):
            found.append(item)

    if isinstance(value, Tensor):
        return [value]
    tree_of(value, leaf)
    return found


def strangers_of(value: Any) -> Iterator[str]:
    """The kinds of what a model returns and no program holds: neither tensors, numbers and text nor structures of them."""
    found: list[str] = []

    def leaf(item: Any) -> None:
        if not isinstance(item, Tensor):
            found.append(type(item).__name__)

    tree_of(value, leaf)
    return iter(dict.fromkeys(found))
