"""Stopping in good order: a signal asks, the loop finishes its step."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self

from truequant.cli.session import INTERRUPTED, TERMINATED


class Stopping:
    """While it is entered, Ctrl-C and SIGTERM set `wanted`, and `code` to the exit code; a second one ends at once."""

    def __init__(self) -> None:
        self.wanted = False
        self.code = INTERRUPTED
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *rest: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted, self.code = True, TERMINATED if number == signal.SIGTERM else INTERRUPTED
