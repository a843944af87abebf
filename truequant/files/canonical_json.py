"""JSON with one spelling a value: sorted keys, no spaces, ASCII, shortest floats that read back to the same bits.

NaN and infinities, duplicate keys and keys that are not strings are refused, and depth and size are bounded, so that
`loads(dumps(x)) == x`, equal values give equal text, and a hostile text costs no more than its length.

>>> dumps({"b": [1.0, -0.0], "a": None})
'{"a":null,"b":[1.0,-0.0]}'
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn, TypeAlias

from truequant.errors import FileError
from truequant.files.limits import MAX_JSON_CHARACTERS, MAX_JSON_DEPTH

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

# A string counts as one token even where its end is missing, so that no text makes the scan start again and again.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def dumps(value: object, where: str = "JSON") -> str:
    """The canonical text of `value`. Tuples become lists. FileError names the path of what JSON cannot hold."""
    _check(value, where, 0)
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def loads(text: str, where: str = "JSON") -> Json:
    """The value of `text`, canonical or not. FileError for anything that `dumps` could not have meant."""
    if len(text) > MAX_JSON_CHARACTERS:
        raise FileError(
            f"{where}: the text is too long", got=f"{len(text)} characters", expected=f"at most {MAX_JSON_CHARACTERS}"
        )
    # Counted before parsing: Python's parser recurses, and a caller may have lifted the recursion limit.
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += 1 if token[0] in "[{" else -1 if token[0] in "]}" else 0
        if depth > MAX_JSON_DEPTH:
            raise _too_deep(where)

    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for key, value in pairs:
            if key in found:
                raise FileError(f"{where}: the key {key!r} stands twice in one object", expected="each key once")
            found[key] = value
        return found

    def finite(digits: str) -> float:
        if math.isinf(number := float(digits)):
            raise FileError(f"{where}: a number too large", got=digits[:40], expected="a finite float64")
        return number

    def constant(name: str) -> NoReturn:
        raise FileError(f"{where}: not a finite number", got=name, expected="numbers without NaN and Infinity")

    try:
        parsed: Json = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=constant)
    except FileError:
        raise
    except ValueError as error:  # JSONDecodeError, and an integer of more digits than Python converts
        raise FileError(f"{where}: not JSON", got=str(error), expected="one JSON value") from None
    return parsed


def _check(value: object, where: str, depth: int) -> None:
    if depth > MAX_JSON_DEPTH:
        raise _too_deep(where)
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise FileError(f"{where}: a key is not a string", got=repr(key), expected="str")
            _check(item, f"{where}.{key}" if depth < 4 else where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]" if depth < 4 else where, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise FileError(f"{where}: not a finite number", got=repr(value), expected="numbers without NaN and Infinity")
    elif not (value is None or isinstance(value, (bool, int, str))):
        raise FileError(
            f"{where}: JSON has no such value", got=type(value).__name__, expected="None, bool, int, float, str, list or dict"
        )


def _too_deep(where: str) -> FileError:
    return FileError(f"{where}: nested too deeply", expected=f"at most {MAX_JSON_DEPTH} levels")
