"""Typed access to JSON that anybody may have written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from truequant.errors import FileError
from truequant.files import Json

T = TypeVar("T")


def field(record: Mapping[str, Any], name: str, kind: type[T], where: str) -> T:
    """`record[name]`, which must be a `kind` (an int is no bool). FileError names what is missing or of a wrong type."""
    if name not in record:
        raise FileError(f"{where}: '{name}' is missing", expected=kind.__name__)
    return typed(record[name], kind, f"{where}: '{name}'")


def typed(value: Any, kind: type[T], where: str) -> T:
    """`value`, which must be a `kind`."""
    if type(value) is not kind:
        raise FileError(f"{where} has a wrong type", got=repr(value)[:120], expected=kind.__name__)
    return value


def strings(value: Json, where: str) -> list[str]:
    """`value`, which must be an array of strings."""
    return [typed(item, str, f"{where}[{index}]") for index, item in enumerate(typed(value, list, where))]
