"""One layout in memory for what float ops read in evaluation: the order of their sums may depend on it.

The program's islands read contiguous tensors, so the evaluated model's do. Training is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from truequant.planning import Role, op_of, writes_in_place
from truequant.planning.ops import IN_C


def on_contiguous(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`function(*args, **kwargs)`, whose calls of torch's functions read contiguous tensors.

    Not what moves values, overwrites them or returns a view: there the tensor itself is meant.
    """
    if torch.compiler.is_compiling():
        return function(*args, **kwargs)  # compiled code orders its sums in its own way
    if isinstance(function, IN_C):
        return _read(function, args, kwargs)
    with _ContiguousReads():
        return function(*args, **kwargs)


class _ContiguousReads(TorchFunctionMode):
    """Sees parameters too, which a module's forward reads and its caller does not pass."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _read(func, args, kwargs or {})


def _read(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One call, whose tensors are made contiguous where it computes with them."""
    op = op_of(function)
    moves = op is None or (op.role in (Role.MOVEMENT, Role.IDENTITY) and op.name != "interpolate")
    if moves or writes_in_place(function) or kwargs.get("inplace") or kwargs.get("out") is not None:
        return function(*args, **kwargs)
    copies: list[Tensor] = []
    laid_out, named = _laid_out(tuple(args), copies), _laid_out(kwargs, copies)
    result = function(*laid_out, **named)
    if copies and _shares(result, copies):  # a view of a copy: writing into it would not reach the tensor itself
        return function(*args, **kwargs)
    return result


def _laid_out(value: Any, copies: list[Tensor]) -> Any:
    """Tensors, also those in lists, tuples and keywords, as contiguous ones; those that were copied are added to `copies`."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_contiguous():
            return value
        copies.append(value.contiguous())
        return copies[-1]
    if type(value) in (list, tuple):
        return type(value)(_laid_out(v, copies) for v in value)
    return {k: _laid_out(v, copies) for k, v in value.items()} if type(value) is dict else value


def _shares(result: Any, copies: Sequence[Tensor]) -> bool:
    held = {c.untyped_storage()._cdata for c in copies}
    tensors = (t for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.layout == torch.strided)
    return any(t.untyped_storage()._cdata in held for t in tensors)
