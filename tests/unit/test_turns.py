"""Tests marked `alone` have the machine for themselves, and others do not wait for each other."""

from __future__ import annotations

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.turns import end, turn


def test_nobody_else_is_there_while_one_is_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inside: list[bool] = []
    seen: list[tuple[bool, ...]] = []
    lock = threading.Lock()

    def visit(alone: bool) -> None:
        for _ in range(10):
            with turn(alone, 1):
                with lock:
                    inside.append(alone)
                    seen.append(tuple(inside))
                time.sleep(0.002)
                with lock:
                    inside.remove(alone)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(visit, [True, False, False, True, False]))
    end(1)
    assert not list(tmp_path.iterdir())
    assert len(seen) == 50
    assert all(len(others) == 1 for others in seen if True in others)
    assert any(len(others) > 1 for others in seen), "tests that need nothing run side by side"


def test_one_process_waits_for_nobody() -> None:
    with turn(True, 0), turn(True, 0):
        pass
