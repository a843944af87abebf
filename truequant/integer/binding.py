"""From a call's arguments to the program's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from truequant.errors import ArgumentError, ArgumentTypeError
from truequant.integer.program import DTYPES, IntegerProgram, ProgramInput
from truequant.planning import Takes, arguments_in, build, names_in

WIDENED = ("bfloat16", "float16")
"""What an input of float32 is also given in: no bit is lost."""
_NOTHING: Any = object()


class Binder:
    """What a program takes, made ready once for all its calls."""

    def __init__(self, program: IntegerProgram) -> None:
        self._program = program
        self._inputs = {tensor.name: tensor for tensor in program.inputs}
        self._tensors: tuple[ProgramInput, ...] = ()
        """Of a program that is called with tensors by position and nothing else: these."""
        if program.call is None:
            return
        parts = dict(program.call["items"])
        self._names = [parameter["text"] for parameter in parts["parameters"]]
        self._expected = self._named(parts["args"]) | dict(parts["kwargs"]["items"])
        self._defaults = dict(parts["defaults"]["items"])
        self._positional = sum(key in self._names or isinstance(key, int) for key in self._expected)
        if not parts["kwargs"]["items"] and all(isinstance(tree, str) for tree in parts["args"]):
            self._tensors = tuple(self._inputs[tree] for tree in parts["args"])

    def __call__(self, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, Tensor]:
        """The inputs by name. ArgumentError unless structure, constants, dtypes and shapes are those of the signature."""
        if not kwargs and self._tensors and len(args) == len(self._tensors):
            return {tensor.name: _checked(value, tensor) for tensor, value in zip(self._tensors, args, strict=True)}
        found = _flat(self._program, args, kwargs).items() if self._program.call is None else self._matched(args, kwargs)
        return {name: _checked(value, self._inputs[name]) for name, value in found}

    def _named(self, given: Sequence[Any]) -> dict[int | str, Any]:
        return {self._names[i] if i < len(self._names) else i: value for i, value in enumerate(given)}

    def _matched(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Iterator[tuple[str, object]]:
        """Arguments by position or by name, as the model's forward takes them."""
        program, expected = self._program, self._expected
        given = self._named(args)
        if set(kwargs) & set(given) or any(isinstance(key, int) and key not in expected for key in given):
            raise _other(program, f"{len(args)} positional, keywords {sorted(kwargs)}")
        given.update(kwargs.items())
        for key, value in given.items():
            if key not in expected and not (key in self._defaults and _same(build(self._defaults[key], {}), value)):
                raise _other(program, _said(str(key), value))
        for key, tree in expected.items():
            if key in given:
                yield from _leaves(tree, given[key], str(key), program)
            elif any(names_in(tree)):  # constants are part of what ships, and may be left out
                missing = len(args) < self._positional and not kwargs
                raise _other(program, f"{len(args)} positional, keywords []" if missing else f"no '{key}'")


def bind(program: IntegerProgram, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, Tensor]:
    """The inputs of one call, see `Binder`."""
    return Binder(program)(args, kwargs)


def takes(program: IntegerProgram) -> Takes:
    """What a program takes."""
    if program.call is not None:
        return Takes.of(program.call)
    keywords = frozenset(tensor.keyword for tensor in program.inputs if tensor.keyword is not None)
    return Takes(len(program.inputs) - len(keywords), keywords)


def called_with(program: IntegerProgram, inputs: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`args, kwargs` of a call with these inputs, by name."""
    if program.call is not None:
        return arguments_in(program.call, inputs)
    args = tuple(inputs[tensor.name] for tensor in program.inputs if tensor.keyword is None)
    return args, {tensor.keyword: inputs[tensor.name] for tensor in program.inputs if tensor.keyword is not None}


def _flat(program: IntegerProgram, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    """Of a program in which each input is an argument of its own."""
    positional = [tensor for tensor in program.inputs if tensor.keyword is None]
    named = {tensor.keyword: tensor for tensor in program.inputs if tensor.keyword is not None}
    if len(args) != len(positional) or set(kwargs) != set(named):
        raise _other(program, f"{len(args)} positional, keywords {sorted(kwargs)}")
    bound: dict[str, object] = {tensor.name: value for tensor, value in zip(positional, args, strict=True)}
    return bound | {named[key].name: value for key, value in kwargs.items()}


def _leaves(tree: Any, value: Any, path: str, program: IntegerProgram) -> Iterator[tuple[str, object]]:
    """Names in a tree with what stands in their places; ArgumentError for another structure or constant."""
    kind, content = next(iter(tree.items())) if isinstance(tree, dict) else ("", tree)
    if isinstance(tree, str):
        yield tree, value
    elif isinstance(tree, list) or kind == "tuple":
        if not isinstance(value, (list, tuple)) or len(value) != len(content):
            raise _other(program, _said(path, value))
        for i, (item, inner) in enumerate(zip(content, value, strict=True)):
            yield from _leaves(item, inner, f"{path}[{i}]", program)
    elif kind in ("items", "fields", "named"):
        keys = [key for key, _ in content]
        if isinstance(value, Mapping) and (extra := [key for key in value if key not in keys]):
            raise _other(program, f"{path}[{extra[0]!r}], which the example did not have")
        for key, item in content:
            inner = value.get(key, _NOTHING) if isinstance(value, Mapping) else getattr(value, str(key), _NOTHING)
            if inner is _NOTHING:
                raise _other(program, f"no {path}[{key!r}]")
            yield from _leaves(item, inner, f"{path}[{key!r}]", program)
    elif not _same(build(tree, {}), value):
        raise _other(program, _said(path, value))


def _same(constant: Any, value: Any) -> bool:
    return type(constant) is type(value) and bool(constant == value)


def _said(path: str, value: Any) -> str:
    what = f"a {type(value).__name__}" if isinstance(value, (Tensor, Mapping, list, tuple)) else repr(value)[:60]
    return f"{what} for '{path}'"


def _other(program: IntegerProgram, got: str) -> ArgumentError:
    return ArgumentError(
        "the Int8 model was called with other inputs than it was converted with", got=got, expected=signature(program)
    )


def signature(program: IntegerProgram) -> str:
    """The call as text: `(float32[*, 1, 28, 28], mask=float32[*, 28])`; a star is any size."""
    if program.call is None:
        texts = [f"{'' if t.keyword is None else t.keyword + '='}{_type(t)}" for t in program.inputs]
        return f"({', '.join(texts)})"
    types = {tensor.name: _type(tensor) for tensor in program.inputs}
    parts = dict(program.call["items"])
    texts = [_text(tree, types) for tree in parts["args"]]
    return f"({', '.join([*texts, *(f'{key}={_text(tree, types)}' for key, tree in parts['kwargs']['items'])])})"


def _text(tree: Any, types: Mapping[str, str]) -> str:
    if isinstance(tree, str):
        return types[tree]
    if isinstance(tree, list):
        return f"[{', '.join(_text(item, types) for item in tree)}]"
    if not isinstance(tree, dict):
        return repr(tree)
    ((kind, content),) = tree.items()
    if kind == "text":
        return repr(content)
    if kind == "tuple":
        return f"({', '.join(_text(item, types) for item in content)})"
    return "{" + ", ".join(f"{key}: {_text(item, types)}" for key, item in content) + "}"


def _checked(value: object, expected: ProgramInput) -> Tensor:
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"input '{expected.name}' is not a tensor", got=type(value).__name__, expected=_type(expected))
    dtype = DTYPES[expected.dtype]
    if value.dtype is not dtype and expected.dtype == "float32" and str(value.dtype).removeprefix("torch.") in WIDENED:
        value = value.float()
    if value.dtype is not dtype:
        raise ArgumentError(
            f"input '{expected.name}' has a wrong dtype",
            got=value.dtype,
            expected=dtype,
            fix=f"x.to({dtype})",
        )
    shape = tuple(value.shape)
    if shape != expected.shape and not _fits(shape, expected.shape):
        raise ArgumentError(f"input '{expected.name}' has a wrong shape", got=shape, expected=_type(expected))
    return value


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(b in (a, None) for a, b in zip(shape, expected, strict=True))


def _type(tensor: ProgramInput) -> str:
    return f"{tensor.dtype}[{', '.join('*' if size is None else str(size) for size in tensor.shape)}]"
