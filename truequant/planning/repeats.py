"""Modules that one forward calls more than once, from one module or from several: which of its calls a call is.

A key tells the calls of a module apart, in planning and at run time alike: the numbers of those modules on the way to it,
outermost first, that are called repeatedly. Calls of a module are numbered caller by caller, so that a forward needs to know
nothing but who calls, and how often that caller has called before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import nn

from truequant.planning.capture import Frame, Trace

Key = tuple[int, ...]


class Repeats:
    """Of an evaluated forward, and of the same model's forward in training.

    multiple: modules that the evaluated forward calls more than once; callers: of each, the number of the first call by each
    module that calls it.
    """

    def __init__(self, evaluated: Trace, trained: Trace, modules: Mapping[str, nn.Module]) -> None:
        calls = Counter(frame[-1][0] for frame in evaluated.frames)
        self.multiple = {name for name, n in calls.items() if n > 1}
        self.callers = {name: _first_calls(name, (*evaluated.frames, *trained.frames)) for name in self.multiple}
        self._held: dict[nn.Module, list[str]] = {}
        self._modules = modules
        for name, module in modules[""].named_modules(remove_duplicate=False):
            self._held.setdefault(module, []).append(name)
        self._places: Counter[tuple[str, str]] = Counter()
        for frame in evaluated.frames:
            self._places[frame[-1][0], self._path(frame)] += 1

    def key(self, frame: Frame) -> Key:
        """The key of a call."""
        callers = ("", *(name for name, _ in frame))
        return tuple(
            self.callers[name].get(caller, 0) + ordinal
            for caller, (name, ordinal) in zip(callers, frame, strict=False)
            if name in self.multiple
        )

    def keys(self, trace: Trace) -> dict[str, tuple[Key, ...]]:
        """The keys of all calls of each module in a forward, calls on constants alone included."""
        found: dict[str, dict[Key, None]] = {}
        for frame in trace.frames:
            found.setdefault(frame[-1][0], {})[self.key(frame)] = None
        return {name: tuple(sorted(keys)) for name, keys in found.items()}

    def place(self, frame: Frame) -> str | None:
        """The path by which the modules of a frame hold the last of them; None where several calls have that path."""
        path = self._path(frame)
        return path if not frame or self._places[frame[-1][0], path] == 1 else None

    def paths(self, name: str) -> tuple[str, ...]:
        """All paths of a module in the model."""
        return tuple(self._held[self._modules[name]])

    def _path(self, frame: Frame) -> str:
        path = caller = ""
        for name, _ in frame:
            start = f"{caller}." if caller else ""
            inside = next((n for n in self._held.get(self._modules[name], ()) if n.startswith(start) and n != caller), None)
            path = name if inside is None else f"{path}.{inside[len(start) :]}" if path else inside[len(start) :]
            caller = name
        return path


def _first_calls(name: str, frames: tuple[Frame, ...]) -> dict[str, int]:
    times: dict[str, int] = {}
    for frame in frames:
        if frame[-1][0] == name:
            caller = frame[-2][0] if len(frame) > 1 else ""
            times[caller] = max(times.get(caller, 0), frame[-1][1] + 1)
    first, result = 0, {}
    for caller, n in times.items():
        result[caller] = first
        first += n
    return result
