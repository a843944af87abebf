"""A config from a TOML file: the border where text becomes values.

preset = "int8"                       # what everything below changes
target = "onnxruntime"
observer = { kind = "percentile", percent = 99.99 }

[[rule]]
select = "classifier"                 # a name, a glob or a call site
float = true

[[rule]]
select = "features.0.*"
weight = { dtype = "int4", granularity = "per-channel", scale = "lsq" }
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from truequant.errors import SchemeError
from truequant.schemes.defaults import Saturation
from truequant.schemes.dtypes import integer_type
from truequant.schemes.granularity import PerChannel, PerGroup, PerTensor
from truequant.schemes.presets import named
from truequant.schemes.rounding import EWGS, Freezing, Nearest, Stochastic
from truequant.schemes.rules import INHERIT, Choice, Rule
from truequant.schemes.scales import SCALE_RULES
from truequant.schemes.scheme import QuantScheme
from truequant.schemes.strategies import MSE, Dynamic, Entropy, Histogram, MinMax, MovingAverage, Observation, Percentile
from truequant.schemes.targets import TARGETS

LARGEST_FILE = 1 << 18
"""Bytes of a config file that are read; a longer one is no config."""
LONGEST_LINE = 1000
"""Characters of a line: the parser's time grows with the square of the parts of a dotted key."""
_OBSERVERS: dict[str, type[Any]] = {
    "min-max": MinMax, "moving-average": MovingAverage, "histogram": Histogram, "percentile": Percentile, "mse": MSE,
    "entropy": Entropy, "dynamic": Dynamic,
}  # fmt: skip
_SCALES: dict[str, type[Any]] = {rule.label.lower(): rule for rule in SCALE_RULES}
_ROUNDINGS: dict[str, type[Any]] = {"nearest": Nearest, "stochastic": Stochastic, "ewgs": EWGS}
_OSCILLATIONS: dict[str, type[Any]] = {"freezing": Freezing}
_KINDS = {"observer": _OBSERVERS, "scale": _SCALES, "rounding": _ROUNDINGS, "oscillation": _OSCILLATIONS}
_PLAIN = ("symmetric", "gradient", "scale_dtype", "full_range")
"""Fields of a scheme that are written as they are."""
_GRANULARITIES: dict[str, Callable[..., Any]] = {"per-tensor": PerTensor, "per-channel": PerChannel, "per-group": PerGroup}


@dataclass(frozen=True, slots=True)
class Described:
    """What a text says of a config. fields: of `QConfig`, by name; observer: of all that is observed; rules: in their order."""

    fields: Mapping[str, Any]
    observer: Observation | None
    rules: tuple[Rule, ...]


def described_by_file(path: str | Path) -> Described:
    """What a TOML file says. Raises `SchemeError`, naming file and key, for anything that is none."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SchemeError(
                f"{path}: too large for a config", got=f"{path.stat().st_size} bytes", expected=f"at most {LARGEST_FILE}"
            )
        text = path.read_text(encoding="utf-8")
        if (longest := max(map(len, text.splitlines()), default=0)) > LONGEST_LINE:
            raise SchemeError(
                f"{path}: a line too long for a config", got=f"{longest} characters", expected=f"at most {LONGEST_LINE}"
            )
        document = tomllib.loads(text)
    except SchemeError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # what is no text, no TOML, or a number of too many digits
        raise SchemeError(
            f"{path}: cannot be read as TOML", got=f"{type(error).__name__}: {error}", fix="see QConfig.from_file"
        ) from error
    return described(document, str(path))


_SWITCHES = ("unroll_recurrent", "wide_streams")
"""Fields that are true or false."""


def described(document: Mapping[str, Any], where: str) -> Described:
    """What a parsed table says."""
    _known(
        document,
        {"preset", "target", "saturation", "observer", "weight", "activation", "input", "output", "rule", *_SWITCHES},
        where,
    )
    found: dict[str, Any] = dict(named(document.get("preset", "int8")))
    for switch in _SWITCHES:
        if switch in document:
            if not isinstance(document[switch], bool):
                raise SchemeError(f"{where}: {switch}", got=repr(document[switch]), expected="true or false")
            found[switch] = document[switch]
    if "target" in document:
        found["target"] = _choice(TARGETS, document["target"], f"{where}: target")
    if "saturation" in document:
        choices = {name: name for name in get_args(Saturation)}
        found["saturation"] = _choice(choices, document["saturation"], f"{where}: saturation")
    for field in ("weight", "activation", "input", "output"):
        if field in document:
            found[field] = _scheme(document[field], f"{where}: {field}")
    observer = _made(_OBSERVERS, document["observer"], f"{where}: observer") if "observer" in document else None
    rules = document.get("rule", [])
    if not isinstance(rules, list):
        raise SchemeError(f"{where}: rule is no list of tables", got=repr(rules), expected="[[rule]]")
    return Described(found, observer, tuple(_rule(r, f"{where}: rule {i}") for i, r in enumerate(rules)))


def _rule(table: Any, where: str) -> Rule:
    _known(table, {"select", "float", "weight", "input", "output"}, where)
    if not isinstance(table.get("select"), str):
        raise SchemeError(f"{where}: no selector", got=repr(table.get("select")), expected='select = "name or glob"')
    scheme: Choice = None if table.get("float") is True else INHERIT
    return Rule(
        table["select"], scheme, **{f: _scheme(table[f], f"{where}: {f}") for f in ("weight", "input", "output") if f in table}
    )


def _scheme(value: Any, where: str) -> QuantScheme | None:
    """A table, a type's name alone, or "float"."""
    if value == "float":
        return None
    table = {"dtype": value} if isinstance(value, str) else value
    _known(table, {"dtype", "granularity", *_PLAIN, *_KINDS}, where)
    made: dict[str, Any] = {"dtype": integer_type(table.get("dtype", ""))}
    if "granularity" in table:
        made["granularity"] = _made(_GRANULARITIES, table["granularity"], f"{where}: granularity")
    made |= {field: _made(kinds, table[field], f"{where}: {field}") for field, kinds in _KINDS.items() if field in table}
    made |= {f: table[f] for f in _PLAIN if f in table}
    return QuantScheme(**made)


def _made(kinds: Mapping[str, Callable[..., Any]], value: Any, where: str) -> Any:
    """The name "percentile", or { kind = "percentile", percent = 99.9 }."""
    table = {"kind": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise SchemeError(f"{where}: neither a name nor a table", got=repr(value), expected=", ".join(kinds))
    kind: Any = _choice(kinds, table.get("kind"), where)
    arguments = {k: v for k, v in table.items() if k != "kind"}
    _known(arguments, {f.name for f in fields(kind)}, where)
    return kind(**arguments)


def _choice(kinds: Mapping[str, Any], name: Any, where: str) -> Any:
    if not isinstance(name, str) or name not in kinds:
        raise SchemeError(f"{where}: unknown name", got=repr(name), expected=", ".join(kinds))
    return kinds[name]


def _known(table: Any, keys: set[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise SchemeError(f"{where}: no table", got=repr(table), expected="{ key = value }")
    for key in table:
        if key not in keys:
            raise SchemeError(f"{where}: unknown key {key!r}", got=key, expected=", ".join(sorted(keys)))
