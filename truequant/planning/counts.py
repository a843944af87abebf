"""How often the modules of a model call each op, as a plan keeps it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from truequant.planning.capture import Frame


def most_calls(recorded: Mapping[tuple[str, Frame], Counter[str]]) -> dict[str, Counter[str]]:
    """How often each owner's own forward calls each op, in that of its calls which does so most often."""
    most: dict[str, Counter[str]] = {}
    for (owner, _), calls in recorded.items():
        most[owner] = most.get(owner, Counter()) | calls
    return most


def rows_of_counts(
    owner: str, evaluated: dict[str, Counter[str]], trained: dict[str, Counter[str]]
) -> tuple[tuple[str, int, int], ...]:
    """The ops that an owner's own forward calls, by name, and how often in evaluation and in training."""
    pair = evaluated.get(owner, Counter()), trained.get(owner, Counter())
    return tuple((op, pair[0][op], pair[1][op]) for op in sorted({*pair[0], *pair[1]}))
