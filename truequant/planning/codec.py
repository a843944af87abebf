"""Configs and plans as JSON, and back.

A dataclass is `{"type": its name, FIELD: …}`, a tuple an array, an infinity `{"float": "inf"}`. A rule's selector is a string,
`{"regex": …, "flags": …}`, `{"class": NAME}` or `{"function": NAME}`. A field that the text lacks takes its default, so that
a field added later does not orphan what was written before; a field that is not known here is an error.

>>> config = QConfig.preset("w4a4")
>>> config_from_json(config_to_json(config)) == config
True
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from truequant import schemes
from truequant.errors import FileError, SchemeError
from truequant.files import Json
from truequant.planning.importable import find, is_function, name_of
from truequant.schemes import INHERIT, INTEGER_TYPES, Inherit, IntegerType, QConfig, Selector

_TYPES: dict[str, type[Any]] = {}
"""What is written by its name: dataclasses, added by `stored`."""
_BEFORE = {("QConfig", "saturation"): "unsigned", ("QConfig", "wide_streams"): False}
"""What a field that a text lacks meant when texts had no such field, where that is not the default."""
_STORED_AS = {("Site", "quantized_at"): "carries"}
"""Fields that texts have under another name: older and newer versions read each other's."""
_FLAGS = re.ASCII | re.IGNORECASE | re.LOCALE | re.MULTILINE | re.DOTALL | re.UNICODE | re.VERBOSE  # not DEBUG, which prints
T = TypeVar("T")


def stored(kind: type[T]) -> type[T]:
    """Have a dataclass, and all dataclasses that its fields may hold, written and read by their names."""
    if _TYPES.setdefault(kind.__name__, kind) is not kind:
        raise TypeError(f"two dataclasses that are stored have the name {kind.__name__}")
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]
    for hint in hints.values():
        for part in _parts(hint):
            if is_dataclass(part) and _TYPES.get(part.__name__) is not part:
                stored(part)
    return kind


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    found = get_type_hints(kind)
    return {field.name: found[field.name] for field in fields(kind)}


def _parts(hint: Any) -> Iterator[type[Any]]:
    """The classes of which a hint is made."""
    if isinstance(hint, type) and not get_args(hint):
        yield hint
    for argument in get_args(hint):
        yield from _parts(argument)


def config_to_json(config: QConfig) -> Json:
    """JSON of a config. SchemeError for a rule whose selector has no importable name."""
    return _encode(config, "config")


def to_json(value: object, where: str) -> Json:
    """JSON of a stored dataclass. SchemeError for a rule whose selector has no importable name."""
    return _encode(value, where)


def config_from_json(value: Json, where: str = "config") -> QConfig:
    """The config of a JSON that anybody may have written. FileError says what is wrong, and where."""
    return _record(QConfig, value, where)


def from_json(kind: type[T], value: Json, where: str) -> T:
    """The stored dataclass of a JSON that anybody may have written. FileError says what is wrong, and where."""
    return _record(kind, value, where)


stored(schemes.QConfig)


def scheme_to_json(scheme: schemes.QuantScheme) -> Json:
    """JSON of a scheme."""
    return _encode(scheme, "scheme")


def scheme_from_json(value: Json, where: str = "scheme") -> schemes.QuantScheme:
    """The scheme of a JSON that anybody may have written. FileError says what is wrong, and where."""
    return _record(schemes.QuantScheme, value, where)


# -- to JSON -----------------------------------------------------------------------------------------------------------
def _encode(value: Any, where: str) -> Json:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (tuple, list)):
        return [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is INHERIT:
        return {"type": "INHERIT"}
    if _TYPES.get(type(value).__name__) is not type(value):
        raise SchemeError(f"{where}: cannot be stored", got=repr(value)[:200], expected=f"one of {', '.join(sorted(_TYPES))}")
    if isinstance(value, IntegerType):
        _known_type(value, where, SchemeError)
    record: dict[str, Json] = {"type": type(value).__name__}
    for field in fields(value):
        item, name = getattr(value, field.name), _stored_as(type(value), field.name)
        at = f"{where}.{name}"
        record[name] = _encode_selector(item, at) if name == "select" else _encode(item, at)
    return record


def _stored_as(kind: type, field: str) -> str:
    return _STORED_AS.get((kind.__name__, field), field)


def _encode_selector(select: Selector, where: str) -> Json:
    if isinstance(select, str):
        return select
    if isinstance(select, re.Pattern):
        return {"regex": select.pattern, "flags": int(select.flags)}
    return {"class" if isinstance(select, type) else "function": name_of(select, where)}


# -- from JSON ---------------------------------------------------------------------------------------------------------
def _wrong(where: str, got: object, expected: object) -> FileError:
    return FileError(f"{where}: cannot be", got=repr(got)[:200], expected=expected)


def _record(kind: type[T], value: Json, where: str) -> T:
    if not isinstance(value, dict) or value.get("type") != kind.__name__:
        raise _wrong(where, value.get("type") if isinstance(value, dict) else value, f"a {kind.__name__}")
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]
    found, names = {}, {_stored_as(kind, name) for name in hints}
    for name in value:
        if name != "type" and name not in names:
            raise FileError(
                f"{where}: a {kind.__name__} has no field {name[:200]!r}",
                expected=", ".join(_stored_as(kind, name) for name in hints),
                fix="read it with the truequant that wrote it",
            )
    for field in fields(kind):  # type: ignore[arg-type]
        name = _stored_as(kind, field.name)
        if (kind.__name__, field.name) in _BEFORE:
            found[field.name] = _BEFORE[kind.__name__, field.name]
        if name in value:
            found[field.name] = _value(hints[field.name], value[name], f"{where}.{name}")
        elif field.name not in found and field.default is MISSING and field.default_factory is MISSING:
            raise FileError(f"{where}: a {kind.__name__} lacks its field '{name}'", expected=", ".join(hints))
    try:
        made = kind(**found)
    except SchemeError as error:
        raise FileError(f"{where}: {error.what}", got=error.got, expected=error.expected) from error
    if isinstance(made, IntegerType):
        _known_type(made, where, FileError)
    return made


def _known_type(value: IntegerType, where: str, error: type[FileError] | type[SchemeError]) -> None:
    if INTEGER_TYPES.get(value.name) != value:
        raise error(
            f"{where}: no integer type of truequant",
            got=f"{value.name!r} of {value.bits} bits, {value.qmin} … {value.qmax}",
            expected=", ".join(INTEGER_TYPES),
        )


def _value(hint: Any, value: Json, where: str) -> Any:
    if hint == Selector:
        return _selector(value, where)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return _alternative(args, value, where)
    if origin is tuple:
        return _tuple(args, value, where)
    if origin is Literal:
        if value not in args:
            raise _wrong(where, value, f"one of {', '.join(map(repr, args))}")
        return value
    if hint in _TYPES.values():
        return _record(hint, value, where)
    if not _fits(hint, value):
        raise _wrong(where, value, hint.__name__)
    return float(value["float"]) if isinstance(value, dict) and hint is float else INHERIT if hint is Inherit else value  # type: ignore[arg-type]


def _fits(hint: Any, value: Json) -> bool:
    """Whether `value` is written as a `hint` is: the alternatives of a union differ in this."""
    if get_origin(hint) is tuple:
        return isinstance(value, list)
    if isinstance(value, dict):
        if hint is float:
            return list(value) == ["float"] and value["float"] in ("inf", "-inf", "nan")
        name = "INHERIT" if hint is Inherit else getattr(hint, "__name__", None)
        return value.get("type") == name
    if hint is type(None):
        return value is None
    return type(value) is hint or (hint is float and type(value) is int)


def _alternative(args: tuple[Any, ...], value: Json, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    for hint in args:
        if _fits(hint, value):
            return _value(hint, value, where)
    got = value.get("type", value) if isinstance(value, dict) else value
    names = ("None" if a is type(None) else "INHERIT" if a is Inherit else getattr(a, "__name__", str(a)) for a in args)
    raise _wrong(where, got, " or ".join(names))


def _tuple(args: tuple[Any, ...], value: Json, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(where, value, "an array")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise _wrong(where, value, f"an array of {len(args)}")
    return tuple(_value(a, item, f"{where}[{index}]") for index, (a, item) in enumerate(zip(args, value, strict=True)))


def _selector(value: Json, where: str) -> Selector:
    if isinstance(value, str):
        return value
    keys = sorted(value) if isinstance(value, dict) else None
    if isinstance(value, dict) and keys == ["flags", "regex"] and isinstance(value["regex"], str):
        flags = value["flags"]
        if type(flags) is not int or flags & ~int(_FLAGS):
            raise _wrong(f"{where}.flags", flags, "flags of re")
        try:
            return re.compile(value["regex"], flags)
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            raise FileError(f"{where}: no regular expression", got=str(error)[:200]) from error
    if isinstance(value, dict) and keys == ["class"]:
        found = find(value["class"], where)
        if isinstance(found, type):
            return found
        raise _wrong(where, value["class"], "the name of a class")
    if isinstance(value, dict) and keys == ["function"]:
        found = find(value["function"], where)
        if is_function(found):
            return found  # type: ignore[no-any-return]
        raise _wrong(where, value["function"], "the name of a function")
    raise _wrong(where, value, "a string, {'regex': …, 'flags': …}, {'class': …} or {'function': …}")
