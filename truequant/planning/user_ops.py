"""`register_op`: ops of a user's own, in the same table as torch's."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils import _pytree as pytree

from truequant.errors import ArgumentError, ConversionError
from truequant.planning.ops import Op, Role, add_op, has_op, is_torch_function

Function = Callable[..., Any]
_ROLES: Mapping[str, Role] = {"table": Role.TABLE, "movement": Role.MOVEMENT, "float": Role.FLOAT}


@dataclass(frozen=True, slots=True, eq=False)
class RegisteredOp:
    """What `register_op` was told."""

    name: str
    role: Role
    function: Function
    """What is computed; no call of it is seen as one of this op."""
    lower: Function | None
    onnx: Function | None


_REGISTERED: dict[str, RegisteredOp] = {}


def register_op(
    function: Function | None = None, *, role: Literal["table", "movement", "float"] = "float", name: str | None = None,
    lower: Function | None = None, onnx: Function | None = None,
) -> Function:  # fmt: skip
    """Teach truequant a function of your own; the function that comes back is the one that models call. Also a decorator.

    function: returns one tensor. torch's own functions and custom ops are known as they are; a Python function is wrapped, so
        that a call of it is seen as one op and not as its parts.
    role: how it is quantized. "table": a function of one activation, element by element, of which the Int8 program keeps the
        result of each code. "movement": it moves values and computes none, so that scale and zero point stay. "float": a named
        float island, quantized before and behind.
    lower: of a movement, `lower(steps, x, *args, **kwargs)`: the same as movements that a program has; see
        `truequant.transform.user_ops.MovementSteps`.
    onnx: of a float op, `onnx(step, *args, **kwargs)`, where tensors stand as names and `step("Relu", [name])` appends a node
        and returns the name of what it writes. Without it the op has no ONNX form; `int8(x)` and `.tq` files know it where
        it is registered.

    Raises `ArgumentError` for a name that is taken, an unknown role, or a role whose form is missing.

    >>> import torch
    >>> @register_op(role="table")
    ... def squared_relu(x):
    ...     return torch.relu(x).square()
    >>> squared_relu(torch.tensor([-1.0, 2.0])).tolist()
    [0.0, 4.0]
    """
    if function is None:
        return functools.partial(register_op, role=role, name=name, lower=lower, onnx=onnx)
    name = name or str(getattr(function, "__name__", ""))
    if not name.isidentifier():
        raise ArgumentError("register_op: no name for the op", got=repr(name), expected="an identifier", fix="name='my_op'")
    if role not in _ROLES:
        raise ArgumentError(f"register_op: no role {role!r}", got=repr(role), expected=", ".join(map(repr, _ROLES)))
    if has_op(name):
        raise ArgumentError(f"register_op: there is an op '{name}' already", got=name, fix="name='my_op'")
    if (role == "movement") != (lower is not None):
        raise ArgumentError("register_op: lower= belongs to movements, and each of them needs it", got=f"role={role!r}")
    if onnx is not None and role != "float":
        raise ArgumentError("register_op: onnx= belongs to float ops; tables and movements have a form", got=f"role={role!r}")
    seen = function if is_torch_function(function) else _wrapped(function)
    add_op(Op(name, _ROLES[role], (seen,)))
    _REGISTERED[name] = RegisteredOp(name, _ROLES[role], function, lower, onnx)
    return seen


def _wrapped(function: Function) -> Function:
    @functools.wraps(function)
    def seen(*args: Any, **kwargs: Any) -> Any:
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if has_torch_function(tensors):
            return handle_torch_function(seen, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    return seen


def registered_op(name: str) -> RegisteredOp | None:
    """The registered op of a name."""
    return _REGISTERED.get(name)


def encode_call(args: Sequence[Any], kwargs: Mapping[str, Any], op: str) -> tuple[list[Tensor], str]:
    """Arguments as tensors and JSON text, in which `{"tensor": i}` stands for the i-th tensor."""
    tensors: list[Tensor] = []

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, float) and not math.isfinite(value):
            return {"number": str(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise ConversionError(
            f"'{op}': an argument that a program cannot hold", got=repr(value)[:120],
            expected="tensors, numbers, strings, None, and lists of them",
        )  # fmt: skip

    return tensors, json.dumps([plain(list(args)), [[k, plain(v)] for k, v in kwargs.items()]])


def renumbered(text: str, order: Sequence[int]) -> str:
    """The text of a call whose i-th tensor stands at `order[i]`."""

    def value(item: Any) -> Any:
        if isinstance(item, list):
            return [value(i) for i in item]
        return {"tensor": order[item["tensor"]]} if isinstance(item, dict) and "tensor" in item else item

    return json.dumps(value(json.loads(text)))


def decode_call(text: str, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """`args, kwargs` of what `encode_call` wrote, with `tensors` in their places. `ConversionError` for any other text."""

    def value(item: Any) -> Any:
        if isinstance(item, list):
            return [value(i) for i in item]
        match item:
            case {"tensor": int(i)} if 0 <= i < len(tensors):
                return tensors[i]
            case {"number": "inf" | "-inf" | "nan" as number}:
                return float(number)
            case dict():
                raise ValueError("an argument that points nowhere")
        return item

    try:
        args, pairs = json.loads(text)
        return value(args), {str(k): value(v) for k, v in pairs}
    except (ValueError, TypeError, RecursionError) as error:
        raise ConversionError("a call of a registered op that cannot be read", got=text[:120]) from error
