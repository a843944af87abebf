"""What the rules of a config say of one site."""

from __future__ import annotations

from dataclasses import dataclass

from truequant.schemes import INHERIT, Inherit, QuantScheme, Rule


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the rules of one site say, later rules winning, and the last of them."""

    in_float: bool = False
    weight: QuantScheme | Inherit | None = INHERIT
    input: QuantScheme | Inherit | None = INHERIT
    output: QuantScheme | Inherit | None = INHERIT
    rule: str | None = None

    @staticmethod
    def of(rules: list[Rule]) -> Overrides:
        merged: dict[str, QuantScheme | Inherit | None] = {
            "scheme": INHERIT,
            "weight": INHERIT,
            "input": INHERIT,
            "output": INHERIT,
        }
        for rule in rules:
            if rule.scheme is INHERIT:  # a later rule with a scheme takes the site out of float again
                merged["scheme"] = INHERIT
            for field in merged:
                if getattr(rule, field) is not INHERIT:
                    merged[field] = getattr(rule, field)
        in_float = merged["scheme"] is None
        return Overrides(in_float, merged["weight"], merged["input"], merged["output"], repr(rules[-1]) if rules else None)
