"""Types and functions by importable name. A name is looked up among what is imported already; nothing is imported or run."""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any

from torch.overrides import resolve_name

from truequant.errors import FileError, SchemeError

_FUNCTIONS = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)  # fmt: skip


def is_function(value: object) -> bool:
    """Whether `value` is a plain function or method: an instance with `__call__` has no name to find it by."""
    return isinstance(value, _FUNCTIONS)


def name_of(value: Any, where: str) -> str:
    """The dotted name under which `find` returns `value`; SchemeError where there is none (a lambda, a local class)."""
    module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    named = isinstance(value, type) or is_function(value)
    for name in (f"{module}.{qualified}", resolve_name(value) if is_function(value) else None) if named else ():
        if name is not None and _look_up(name) is value:
            return name
    raise SchemeError(
        f"{where}: cannot be stored, because no importable name leads to it",
        got=repr(value)[:200],
        expected="a class or function defined at the top of a module",
        fix="select the sites by name or glob instead",
    )


def find(name: object, where: str) -> Any:
    """What a dotted name means here and now; FileError where nothing imported has it."""
    found = _look_up(name) if isinstance(name, str) else None
    if found is None:
        raise FileError(
            f"{where}: nothing imported has this name",
            got=repr(name)[:200],
            expected="the name of a class or function of torch, or of a module that is imported already",
            fix="import the module that defines it before loading",
        )
    return found


def _look_up(name: str) -> Any:
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:length]))
        if module is None:
            continue
        found: Any = module
        for part in parts[length:]:
            # getattr would run a module's `__getattr__` or a property, which a file must not be able to cause.
            found = inspect.getattr_static(found, part, None)
            if isinstance(found, (staticmethod, classmethod)):
                found = found.__func__
        return found
    return None
