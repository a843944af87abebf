"""Which module's forward is running in this thread, and which call of it this is."""

from __future__ import annotations

from types import TracebackType

from truequant.fake.clock import local


class Frame:
    """A running forward. `key` holds the ordinals of those modules, outermost first, that a forward calls repeatedly."""

    __slots__ = ("calls", "key", "outer")

    def __init__(self, key: tuple[int, ...]) -> None:
        self.key = key
        self.calls: dict[int, int] = {}
        self.outer: Frame | None = None

    def __enter__(self) -> Frame:
        self.outer, local.frame = local.frame, self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        local.frame = self.outer


def key_of(module: object, multiple: bool) -> tuple[int, ...]:
    """The key of a call of `module` that starts now; counts it where a forward calls the module repeatedly."""
    frame: Frame | None = local.frame
    if frame is None:
        return (0,) if multiple else ()
    if not multiple:
        return frame.key
    ordinal = frame.calls.get(id(module), 0)
    frame.calls[id(module)] = ordinal + 1
    return (*frame.key, ordinal)
