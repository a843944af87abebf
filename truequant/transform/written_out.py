"""Functions that take an example's shape or dtype, written out while a model is traced for conversion.

What is traced then reads sizes and names of dtypes, where it read tensors: `x.expand_as(y)` is `x.expand(y.shape)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    other = args[0] if args else kwargs.get("other")
    return x.to(other.dtype) if isinstance(other, Tensor) else x.to(*args, **kwargs)


def _broadcast(*tensors: Any) -> list[Tensor]:
    given: Sequence[Tensor] = tensors[0] if len(tensors) == 1 and not isinstance(tensors[0], Tensor) else tensors
    shape = torch.broadcast_shapes(*(t.shape for t in given))
    return [t if t.shape == shape else t.expand(shape) for t in given]


_FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    Tensor.type_as: lambda x, other: x.to(other.dtype),
    Tensor.to: _to,
    Tensor.expand_as: lambda x, other: x.expand(other.shape),
    Tensor.view_as: lambda x, other: x.view(other.shape),
    Tensor.reshape_as: lambda x, other: x.reshape(other.shape),
    torch.broadcast_tensors: _broadcast,
    # Whether an encoder may drop padding at the end: it never does here. torch before 2.9 cannot trace the question.
    torch._nested_tensor_from_mask_left_aligned: lambda *_: False,
}


Places = Sequence[Sequence[int]]
"""Of a mask: the numbers of the places that say yes, axis by axis."""


class WrittenOut(TorchFunctionMode):
    """Active around a traced forward. masks: places of those that its modules hold, by the identity of what stands for them."""

    def __init__(self, masks: Mapping[int, Places]) -> None:
        super().__init__()
        self.masks = masks

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and self.masks:
            return func(args[0], self._by_places(args[1]))
        return _FORMS.get(func, func)(*args, **(kwargs or {}))

    def _by_places(self, index: Any) -> Any:
        """An index whose masks are the numbers of their places: how many elements it takes is known."""
        items = index if isinstance(index, tuple) else (index,)
        if not any(id(item) in self.masks for item in items):
            return index
        return tuple(place for item in items for place in (self.masks.get(id(item)) or (item,)))
