"""Latencies: each model is called in each round, and the median is taken."""

from __future__ import annotations

import time

import torch

from truequant.demo.latency import median_latencies


def test_models_take_turns_and_the_slower_one_is_slower() -> None:
    calls: list[str] = []

    def quick(x: torch.Tensor) -> None:
        calls.append("quick")

    def slow(x: torch.Tensor) -> None:
        calls.append("slow")
        time.sleep(0.002)

    found = median_latencies({"quick": quick, "slow": slow}, torch.zeros(1), rounds=3)
    assert calls == ["quick", "slow"] * 5
    assert found["quick"] < 0.002 <= found["slow"]
