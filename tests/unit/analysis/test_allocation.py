"""Allocation of widths against all assignments."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

import pytest

import truequant as tq
from truequant.analysis.allocation import Choice, allocate
from truequant.errors import ArgumentError


def ratio(seed: int, share: float) -> float:
    """The loss of what was found over that of the best of all 3^6 assignments."""
    chance = random.Random(seed)
    sizes = {f"w{i}": chance.choice([1, 10, 100]) * chance.random() for i in range(6)}
    choices = [Choice(name, tuple(sorted((chance.random() ** 4 for _ in range(3)), reverse=True))) for name in sizes]
    bits = (2, 4, 8)

    def cost(picked: Mapping[str, int]) -> float:
        return sum(sizes[name] * bits[index] for name, index in picked.items())

    def loss(picked: Mapping[str, int]) -> float:
        return sum(c.losses[picked[c.name]] for c in choices)

    limit = cost(dict.fromkeys(sizes, 0)) + share * (cost(dict.fromkeys(sizes, 2)) - cost(dict.fromkeys(sizes, 0)))
    every = [dict(zip(sizes, indices, strict=True)) for indices in itertools.product(range(3), repeat=6)]
    best = min(loss(p) for p in every if cost(p) <= limit)
    picked = allocate(choices, cost, limit)
    assert picked is not None
    assert cost(picked) <= limit
    assert picked == allocate(choices, cost, limit)
    return loss(picked) / best


def test_against_all_assignments() -> None:
    ratios = sorted(ratio(seed, share) for seed in range(40) for share in (0.3, 0.6, 0.9))
    assert sum(r <= 1.0 + 1e-12 for r in ratios) > 0.85 * len(ratios)  # mostly the very best
    assert sum(r <= 1.1 for r in ratios) > 0.95 * len(ratios)
    assert ratios[-1] < 2


def test_a_budget_that_cannot_be_met_and_one_that_is_never_reached() -> None:
    choices = [Choice("a", (0.5, 0.1)), Choice("b", (0.2, 0.3))]

    def cost(picked: Mapping[str, int]) -> float:
        return sum(2 * index + 1 for index in picked.values())

    assert allocate(choices, cost, 1.9) is None
    assert allocate(choices, cost, 100.0) == {"a": 1, "b": 0}  # where fewer bits lose nothing, fewer bits


def test_budgets_are_values_with_closed_forms() -> None:
    layer = tq.methods.LayerFacts("conv", "conv2d", 1000, 64000)
    assert tq.methods.Size(1).cost(layer, 4, 8) == 500
    assert tq.methods.MultiplyAccumulates(1).cost(layer, 4, 8) == 32000
    assert tq.methods.Latency(1, lambda facts, w, a: facts.weights * w * a).cost(layer, 2, 8) == 16000
    assert tq.methods.Size(8) == tq.methods.Size(8)
    for wrong in (tq.methods.Size, tq.methods.MultiplyAccumulates):
        with pytest.raises(ArgumentError, match=f"{wrong.__name__}: the limit is not positive"):
            wrong(0)
