"""`Rule`: an exception to the config for some sites."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from truequant.errors import SchemeError
from truequant.schemes.scheme import QuantScheme


class Inherit(Enum):
    """The value of a field that a rule leaves out."""

    INHERIT = "inherit"

    def __repr__(self) -> str:
        return "INHERIT"


INHERIT = Inherit.INHERIT
Selector = str | re.Pattern[str] | type | Callable[..., object]
Choice = QuantScheme | None | Inherit


@dataclass(frozen=True, slots=True)
class Rule:
    """Schemes for the sites that `select` matches. Later rules win; a rule that matches nothing is an error.

    select: a module's name (the module and its subtree), a glob (`*` within one level, `**` across levels), a compiled
        regular expression, a module type, a function (`torch.add`), or a call site ("block.add_0").
    scheme: `None` leaves the selected sites in float.
    weight, input, output: the scheme of that tensor; `None` leaves it in float; left out, it is inherited.

    >>> Rule("classifier", None)
    Rule('classifier', None)
    """

    select: Selector
    scheme: Choice = INHERIT
    weight: Choice = INHERIT
    input: Choice = INHERIT
    output: Choice = INHERIT

    def __post_init__(self) -> None:
        if not (isinstance(self.select, (str, re.Pattern, type)) or callable(self.select)):
            raise SchemeError(
                "Rule: the selector selects nothing", got=repr(self.select), expected="name, glob, regex, type or function"
            )
        if isinstance(self.scheme, QuantScheme):
            raise SchemeError(
                f"Rule({self.select!r}): a scheme needs to say what it is for",
                got=f"Rule({self.select!r}, {self.scheme!r})",
                fix=f"Rule({self.select!r}, weight=…), input=… or output=…; Rule({self.select!r}, None) leaves it in float",
            )
        for field in ("scheme", "weight", "input", "output"):
            value = getattr(self, field)
            if not (value is None or isinstance(value, (QuantScheme, Inherit))):
                raise SchemeError(
                    f"Rule({self.select!r}): {field} is not a QuantScheme", got=repr(value), expected="a QuantScheme or None"
                )
        if all(getattr(self, field) is INHERIT for field in ("scheme", "weight", "input", "output")):
            raise SchemeError(
                f"Rule({self.select!r}) changes nothing", fix="give weight=, input=, output=, or None to leave it in float"
            )

    def __repr__(self) -> str:
        named = isinstance(self.select, (str, re.Pattern))
        parts = [repr(self.select) if named else getattr(self.select, "__name__", type(self.select).__name__)]
        if self.scheme is not INHERIT:
            parts.append(repr(self.scheme))
        parts += [f"{f}={getattr(self, f)!r}" for f in ("weight", "input", "output") if getattr(self, f) is not INHERIT]
        return f"Rule({', '.join(parts)})"
