"""Every exception that truequant raises on purpose.

    TruequantError
    ├── SchemeError(ValueError)         a scheme, rule or config that cannot be
    ├── PlanError(ValueError)           a model, a rule or a call that does not fit the plan
    ├── StateError(RuntimeError)        a call in the wrong order (prepared twice, not prepared …)
    │   └── CalibrationError            a range that was never observed
    ├── ConversionError(ValueError)     an op or a value that the integer program cannot hold
    ├── ExportError(RuntimeError)       a runtime that would not compute what the program computes
    ├── VerificationError(RuntimeError) codes that differ
    ├── AnomalyError(RuntimeError)      activations that are not finite, where they were asked for
    ├── FileError(ValueError)           a file that is damaged, foreign or lies about itself
    ├── DataError(ValueError)           training data that is damaged or missing
    └── ArgumentError(ValueError)       any other wrong argument
        └── ArgumentTypeError(TypeError) an argument of a wrong type

A message says what is wrong and where on its first line, then what was got, what was expected, and how to fix it:

>>> print(SchemeError("'conv': 9 bits", got="QuantScheme(int9)", expected="1 to 8 bits", fix="QuantScheme(int8)"))
'conv': 9 bits
  got:      QuantScheme(int9)
  expected: 1 to 8 bits
  fix:      QuantScheme(int8)
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 1000
"""Characters of a line that a message shows of what was got."""


class TruequantError(Exception):
    """Base of all errors. `got`, `expected` and `fix` are kept as attributes for programs that read them."""

    def __init__(self, what: str, *, got: object = None, expected: object = None, fix: str | None = None) -> None:
        self.what, self.got, self.expected, self.fix = what, got, expected, fix
        rows = (("got", None if got is None else _short(str(got))), ("expected", expected), ("fix", fix))
        lines = [f"  {label + ':':<10}{value}" for label, value in rows if value is not None]
        super().__init__("\n".join([what, *lines]))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.got, self.expected, self.fix)


def _short(got: str) -> str:
    """What was got may come from a file that anybody has written: lines are cut to a length that can be read."""
    return "\n".join(
        line if len(line) <= LONGEST else f"{line[:LONGEST]} … ({len(line)} characters)" for line in got.split("\n")
    )


def did_you_mean(name: object, known: Iterable[str]) -> str | None:
    """A fix for a name that nothing has: the one that it is nearly.

    >>> did_you_mean("w8a9", ("w8a8", "w4a16", "fp8"))
    "did you mean 'w8a8'?"
    """
    near = get_close_matches(str(name), known, 1)
    return f"did you mean '{near[0]}'?" if near else None


def _rebuild(kind: type[TruequantError], what: str, got: object, expected: object, fix: str | None) -> TruequantError:
    return kind(what, got=got, expected=expected, fix=fix)


class SchemeError(TruequantError, ValueError):
    """A scheme, rule or config that cannot be."""


class PlanError(TruequantError, ValueError):
    """A model, a rule or a call that does not fit the plan."""


class StateError(TruequantError, RuntimeError):
    """A call in the wrong order."""


class CalibrationError(StateError):
    """A range that was never observed."""


class ConversionError(TruequantError, ValueError):
    """An op or a value that the integer program cannot hold."""


class ExportError(TruequantError, RuntimeError):
    """A runtime that would not compute what the program computes."""


class VerificationError(TruequantError, RuntimeError):
    """Codes that differ. `verification`: the report, where `verify` raised it."""

    verification: object = None


class AnomalyError(TruequantError, RuntimeError):
    """NaN or infinity reached a quantizer in training."""


class FileError(TruequantError, ValueError):
    """A file that is damaged, foreign or lies about itself."""


class DataError(TruequantError, ValueError):
    """Training data that is damaged or missing."""


class ArgumentError(TruequantError, ValueError):
    """Any other wrong argument."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of a wrong type."""
