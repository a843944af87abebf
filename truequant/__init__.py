"""truequant: quantization-aware training whose Int8 model is, bit for bit, the model you validated.

The public names stand in `truequant/api.py`. Each is loaded when it is first used, from its room and with the rooms below that
one: torch does not come before the first that needs it, so that the command line completes words and prints its help without,
and who prepares a model loads no runtime.
"""

import ast
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truequant.api import *  # noqa: F403
    from truequant.api import __all__ as __all__


@cache
def _names_of(module: str) -> dict[str, str]:
    """What a module imports from truequant, and from where: its source is read and not run, which would load every room."""
    spec = find_spec(module)
    source = getattr(spec.loader, "get_source", lambda _: None)(module) if spec else None
    if source is None:  # installed without sources, as frozen programs are
        return dict.fromkeys(import_module(module).__all__, module)
    found: dict[str, str] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ImportFrom):
            whole = statement.names[0].name == "*"
            names = import_module(str(statement.module)).__all__ if whole else [alias.name for alias in statement.names]
            found |= dict.fromkeys(names, str(statement.module))
    return found


def _rooms() -> dict[str, str]:
    """Where each public name is loaded from."""
    return _names_of("truequant.api")


@cache
def _moved() -> dict[str, str]:
    """The names that stood here in version 0.1, and the module of `truequant` that has each now."""
    modules = [name for name, room in _rooms().items() if room == "truequant"]
    return {name: module for module in modules for name in _names_of(f"truequant.{module}")}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_rooms())
    if name.startswith("__"):  # what Python itself asks a package for
        raise AttributeError(f"module 'truequant' has no attribute '{name}'", name=name)
    if _rooms().get(name, "truequant") != "truequant":
        globals()[name] = getattr(import_module(_rooms()[name]), name)
        return globals()[name]
    if find_spec(f"truequant.{name}") is not None:  # a room, or a module of public names
        return import_module(f"truequant.{name}")
    if name in _moved():
        new = f"truequant.{_moved()[name]}"
        warnings.warn(
            f"'truequant.{name}' is '{new}.{name}' now; the old name goes with the next release", DeprecationWarning, 2
        )
        return getattr(import_module(new), name)
    raise AttributeError(f"module 'truequant' has no attribute '{name}'", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_rooms()})
