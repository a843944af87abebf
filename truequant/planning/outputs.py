"""What a model returns, in structures that everything knows."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def plain(value: Any) -> Any:
    """Dataclasses as dicts of their fields, at any depth; mappings that are dataclasses too stay mappings."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors that a model returns, in order."""
    return [leaf for leaf in pytree.tree_leaves(plain(value)) if isinstance(leaf, Tensor)]
