"""Which module's forward is running in this thread, and which call of it this is."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from truequant.fake.clock import local


class Frame:
    """A running forward of module `name`. `key`: see `truequant.planning.repeats`."""

    __slots__ = ("calls", "key", "name", "outer")

    def __init__(self, key: tuple[int, ...], name: str = "") -> None:
        self.key, self.name = key, name
        self.calls: dict[str, int] = {}
        self.outer: Frame | None = None

    def __enter__(self) -> Frame:
        self.outer, local.frame = local.frame, self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        local.frame = self.outer


def key_of(module: str, multiple: bool, callers: Mapping[str, int] | None) -> tuple[int, ...]:
    """The key of a call of `module` that starts now; counts it where a forward calls the module repeatedly.

    module: its name in the plan, as a tracer may hand out another object for it in each call. callers: the number of the first
    call by each module that calls it; a call by another was not planned, and has the key of none that was.
    """
    frame: Frame | None = local.frame
    if frame is None:
        return (0,) if multiple else ()
    if not multiple:
        return frame.key
    ordinal = frame.calls.get(module, 0)
    frame.calls[module] = ordinal + 1
    first = callers.get(frame.name) if callers else 0
    return (*frame.key, -1 if first is None else first + ordinal)
