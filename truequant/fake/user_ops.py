"""Calls of registered ops, carried as one op through `torch.export`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.planning import decode_call, encode_call, registered_op


@torch.library.custom_op("truequant::registered", mutates_args=())
def _call(tensors: list[Tensor], name: str, arguments: str) -> Tensor:
    result = _run(tensors, name, arguments)
    return result.clone() if any(result is t for t in tensors) else result


@_call.register_fake
def _(tensors: list[Tensor], name: str, arguments: str) -> Tensor:
    return _run(tensors, name, arguments)


def _run(tensors: Sequence[Tensor], name: str, arguments: str) -> Tensor:
    op = registered_op(name)
    assert op is not None
    args, kwargs = decode_call(arguments, tensors)
    result = op.function(*args, **kwargs)
    if not isinstance(result, Tensor):
        raise ConversionError(f"'{name}' returns no tensor", got=type(result).__name__, expected="one tensor")
    return result


def traceable(op: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`function(*args, **kwargs)`, as one op of the graph where it is registered under the name `op`."""
    if registered_op(op) is None:
        return function(*args, **kwargs)
    tensors, text = encode_call(args, kwargs, op)
    return _call(tensors, op, text)
