"""From a call's arguments to the program's inputs, and from its values to what the model returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from truequant.errors import ArgumentError, ArgumentTypeError
from truequant.integer.program import DTYPES, IntegerProgram, ProgramInput


def bind(program: IntegerProgram, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, Tensor]:
    """The program's inputs by name. ArgumentError unless number, keywords, dtypes and shapes are those of the signature."""
    positional = [tensor for tensor in program.inputs if tensor.keyword is None]
    named = {tensor.keyword: tensor for tensor in program.inputs if tensor.keyword is not None}
    if len(args) != len(positional) or set(kwargs) != set(named):
        raise ArgumentError(
            "the Int8 model was called with other inputs than it was converted with",
            got=f"{len(args)} positional, keywords {sorted(kwargs)}",
            expected=signature(program),
        )
    bound = {tensor.name: _checked(value, tensor) for tensor, value in zip(positional, args, strict=True)}
    return bound | {named[key].name: _checked(value, named[key]) for key, value in kwargs.items()}


def signature(program: IntegerProgram) -> str:
    """The call as text: `(float32[*, 1, 28, 28], mask=float32[*, 28])`; a star is any size."""
    texts = [f"{'' if t.keyword is None else t.keyword + '='}{_type(t)}" for t in program.inputs]
    return f"({', '.join(texts)})"


def build(tree: Any, values: Mapping[str, Tensor]) -> Any:
    """The structure `tree` of a program's outputs with tensors for names."""
    match tree:
        case str():
            return values[tree]
        case {"tuple": items}:
            return tuple(build(item, values) for item in items)
        case {"dict": items}:
            return {key: build(item, values) for key, item in items.items()}
        case list() | tuple():
            return [build(item, values) for item in tree]
        case _:
            return tree


def _checked(value: object, expected: ProgramInput) -> Tensor:
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"input '{expected.name}' is not a tensor", got=type(value).__name__, expected=_type(expected))
    if value.dtype != DTYPES[expected.dtype]:
        raise ArgumentError(
            f"input '{expected.name}' has a wrong dtype",
            got=value.dtype,
            expected=DTYPES[expected.dtype],
            fix=f"x.to({DTYPES[expected.dtype]})",
        )
    shape = tuple(value.shape)
    if len(shape) != len(expected.shape) or any(b not in (a, None) for a, b in zip(shape, expected.shape, strict=True)):
        raise ArgumentError(f"input '{expected.name}' has a wrong shape", got=shape, expected=_type(expected))
    return value


def _type(tensor: ProgramInput) -> str:
    return f"{tensor.dtype}[{', '.join('*' if size is None else str(size) for size in tensor.shape)}]"
