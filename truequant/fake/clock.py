"""When scales change: between steps, never within one.

A step begins when the outermost prepared module is called in training, outside a running backward, while no earlier call of
it waits for its backward. So gradient accumulation, two forwards before one backward and both kinds of activation
checkpointing see one set of scales from forward to recomputation.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

State = Literal["calibrating", "training", "frozen"]


class _Token:
    """Alive while a forward's graph is, until its backward starts."""

    __slots__ = ("__weakref__", "done")

    def __init__(self) -> None:
        self.done = False

    def finish(self, *_: object) -> None:
        self.done = True


class Clock:
    """One object shared by all quantizers of a model: its state, its step, and whether quantization is on."""

    def __init__(self) -> None:
        self.state: State = "training"
        self.enabled = True
        self.step = 0
        self._waiting: list[weakref.ref[_Token]] = []

    @property
    def calibrating(self) -> bool:
        return self.state == "calibrating"

    def begin(self) -> None:
        """The outermost module is called."""
        if torch.compiler.is_compiling() or in_backward():  # compiled, each forward is a step
            return
        self._waiting = [r for r in self._waiting if (token := r()) is not None and not token.done]
        if not self._waiting:
            self.step += 1

    def watch(self, outputs: Any) -> None:
        """The outermost module returned: its backward is waited for as long as its graph lives."""
        if not torch.is_grad_enabled() or in_backward() or torch.compiler.is_compiling():
            return
        token = _Token()
        for leaf in [outputs] if isinstance(outputs, Tensor) else pytree.tree_leaves(outputs):
            if isinstance(leaf, Tensor) and leaf.grad_fn is not None:
                leaf.grad_fn.register_prehook(token.finish)
                if not self._waiting or self._waiting[-1]() is not token:
                    self._waiting.append(weakref.ref(token))

    def __deepcopy__(self, memo: dict[int, Any]) -> Clock:
        copy = Clock()
        memo[id(self)] = copy
        copy.__setstate__(self.__getstate__())
        return copy

    def __getstate__(self) -> dict[str, Any]:
        return {"state": self.state, "enabled": self.enabled, "step": self.step}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._waiting = []


def is_recomputed() -> bool:
    """Whether a backward is running in this thread, outside of compiled code: a forward is then a recomputation."""
    return torch._C._current_graph_task_id() != -1


def in_backward() -> bool:
    """As `is_recomputed`, anywhere: compiled code has no forward in a backward."""
    return not torch.compiler.is_compiling() and is_recomputed()


class Marking:
    """One trace for conversion, in which sites leave marks instead of quantizing."""

    def __init__(self) -> None:
        self.miscounted: set[tuple[str, str]] = set()
        """Owners and ops that the trace called more or fewer times than evaluation does."""


class Local(threading.local):
    """What the forward of this thread is doing: its frame, who records its codes, whether it writes marks for conversion."""

    def __init__(self) -> None:
        self.frame: Any = None
        self.calls: Any = None
        """The function mode that watches the calls of the owner in whose forward this thread is."""
        self.recorder: Any = None
        self.marking: Marking | None = None
        self.committed: set[int] = set()
        """While compiling: quantizers that this forward has called, by id."""


local = Local()


@contextlib.contextmanager
def marking() -> Iterator[Marking]:
    """Sites leave marks in this context; what it gives says afterwards what became of the trace."""
    local.marking = found = Marking()
    try:
        yield found
    finally:
        local.marking = None
