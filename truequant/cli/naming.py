"""From the name of a Python object to the object: `package.module:name` or `folder/file.py:name`.

Importing a module runs its code. Only what the user named on the command line, or in the TOML file that they named there, is
imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from truequant.errors import ArgumentError

_FORM = "MODULE:NAME, as in my_package.models:make, or FILE.py:NAME"


def named(name: str, where: str) -> Any:
    """The object of a name. `ArgumentError`, saying where the name stood, if there is none; what its module raises passes."""
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise ArgumentError(f"{where}: no name of a Python object", got=repr(name), expected=_FORM)
    found: Any = _module(place, where)
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [n for n in dir(found) if not n.startswith("_")], n=1, cutoff=0.5)
            raise ArgumentError(
                f"{where}: '{place}' has no '{attribute}'",
                got=repr(name),
                fix=f"did you mean '{place}:{near[0]}'?" if near else f"name something that '{place}' defines",
            )
        found = getattr(found, part)
    return found


def made(name: str, where: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """What a factory of a name returns, called with keyword `arguments`; an object that is no function is taken as it is."""
    found = named(name, where)
    if isinstance(found, type) or not _is_finished(found):
        if not callable(found):
            raise ArgumentError(f"{where}: '{name}' cannot be called", got=type(found).__name__, expected="a function or class")
        return found(**(arguments or {}))
    return found


def _is_finished(found: Any) -> bool:
    """A model or a loader itself: both may be callable or iterable, but are not meant to be called here."""
    from torch import nn
    from torch.utils.data import DataLoader

    return isinstance(found, (nn.Module, DataLoader, list, tuple, dict))


def _module(place: str, where: str) -> ModuleType:
    if place.endswith(".py"):
        return _file(Path(place), where)
    folder = str(Path.cwd())
    if folder not in sys.path:  # as `python -m` does
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
            raise  # the module is there, and something that it imports is not
        raise ArgumentError(
            f"{where}: there is no module '{place}'",
            got=f"'{error.name}' in neither the working directory nor the environment",
            expected=_FORM,
            fix="run truequant where the module lies, or name its file",
        ) from error


def _file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise ArgumentError(f"{where}: there is no file '{path}'", expected=_FORM)
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # as `python file.py` does
        sys.path.insert(0, folder)
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path.resolve()):
        return loaded
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise ArgumentError(f"{where}: '{path}' cannot be imported", expected=_FORM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # pickles and dataclasses look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
