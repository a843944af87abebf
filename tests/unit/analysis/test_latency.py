"""Latencies: each call is made in each round, and the median is taken."""

from __future__ import annotations

import time

import torch

from truequant.analysis import median_seconds


def test_calls_take_turns_and_the_slower_one_is_slower() -> None:
    calls: list[str] = []

    def quick() -> None:
        calls.append("quick")

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.002)

    found = median_seconds({"quick": quick, "slow": slow}, rounds=3)
    assert calls == ["quick", "slow"] * 5
    assert found["quick"] < 0.002 <= found["slow"]


def test_gradients_are_recorded_only_on_request() -> None:
    seen: list[bool] = []
    median_seconds({"": lambda: seen.append(torch.is_grad_enabled())}, rounds=1)
    median_seconds({"": lambda: seen.append(torch.is_grad_enabled())}, rounds=1, gradients=True)
    assert seen == [False] * 3 + [True] * 3
