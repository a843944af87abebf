"""One width for each tensor: the least loss under a budget, where losses add up and costs need not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Cost = Callable[[Mapping[str, int]], float]
Losses = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Choice:
    """A tensor and its loss at each width, the narrowest first."""

    name: str
    losses: tuple[float, ...]


def allocate(choices: Sequence[Choice], cost: Cost, limit: float) -> dict[str, int] | None:
    """The index of a width for each tensor; None where even the narrowest exceed the limit.

    Two ways along the Pareto front: from the widest down, by the step that loses least for what it saves, until the budget
    holds, and from the narrowest up, by the step that gains most for what it costs, while one fits. Behind each, single changes
    and exchanges of two tensors, as long as one lowers the loss. The better of the two counts; ties go to the first in order,
    so that equal input gives equal output.
    """
    losses = {choice.name: choice.losses for choice in choices}
    found = [_down(losses, cost, limit), _up(losses, cost, limit)]
    improved = [_improved(losses, picked, cost, limit) for picked in found if picked is not None]
    return min(improved, key=lambda picked: _loss(losses, picked), default=None)


def _loss(losses: Losses, picked: Mapping[str, int]) -> float:
    return sum(row[picked[name]] for name, row in losses.items())


def _down(losses: Losses, cost: Cost, limit: float) -> dict[str, int] | None:
    picked = {name: len(row) - 1 for name, row in losses.items()}
    spent = cost(picked)
    while spent > limit:
        best: tuple[float, str, int, float] | None = None
        for name, row in losses.items():
            for index in range(picked[name]):
                saved = spent - cost(picked | {name: index})
                price = (row[index] - row[picked[name]]) / saved if saved > 0 else 0.0
                if saved > 0 and (best is None or price < best[0]):
                    best = price, name, index, spent - saved
        if best is None:
            return None
        picked[best[1]], spent = best[2], best[3]
    return picked


def _up(losses: Losses, cost: Cost, limit: float) -> dict[str, int] | None:
    picked = dict.fromkeys(losses, 0)
    spent = cost(picked)
    if spent > limit:
        return None
    while True:
        best: tuple[float, str, int, float] | None = None
        for name, row in losses.items():
            for index in range(picked[name] + 1, len(row)):
                more = cost(picked | {name: index}) - spent
                gain = row[picked[name]] - row[index]
                worth = gain / more if more > 0 else float("inf")
                if gain > 0 and spent + more <= limit and (best is None or worth > best[0]):
                    best = worth, name, index, spent + more
        if best is None:
            return picked
        picked[best[1]], spent = best[2], best[3]


def _improved(losses: Losses, picked: dict[str, int], cost: Cost, limit: float) -> dict[str, int]:
    """The best single change or exchange of two, again and again."""
    while True:
        best_gain, best = 0.0, None
        for change in _changes(losses, picked):
            gain = sum(losses[n][picked[n]] - losses[n][i] for n, i in change.items())
            if gain > best_gain and cost(picked | change) <= limit:
                best_gain, best = gain, change
        if best is None:
            return picked
        picked = picked | best


def _changes(losses: Losses, picked: Mapping[str, int]) -> list[dict[str, int]]:
    single = [{n: i} for n, row in losses.items() for i in range(len(row)) if i != picked[n]]
    ups = [c for c in single if all(losses[n][i] < losses[n][picked[n]] for n, i in c.items())]
    downs = [c for c in single if c not in ups]
    return [*ups, *(up | down for up in ups for down in downs if up.keys() != down.keys())]
