"""What verification runs: each runtime as something that gives codes and outputs for a call's arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from truequant.errors import ArgumentError
from truequant.integer import Int8Model
from truequant.runtimes import RUNTIMES as DEPLOYED
from truequant.runtimes import ShippedFile, require_target, runtime_of
from truequant.schemes import TARGETS


@dataclass(frozen=True, slots=True)
class Runner:
    """codes: of every edge, by name; outputs: what the model returns; floats: what it computes in
    float although the program does not (see `Runtime.floats`).
    """

    codes: Callable[..., dict[str, Tensor]]
    outputs: Callable[..., Any]
    floats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """What is verified: a model, and the ONNX file it came from, where a file was given."""

    int8: Int8Model
    file: ShippedFile | None = None


def _reference(subject: Subject) -> Runner:
    return Runner(subject.int8.codes, subject.int8)


def _deployed(name: str) -> Callable[[Subject], Runner]:
    def make(subject: Subject) -> Runner:
        program = subject.int8.program
        runtime = runtime_of(name)
        require_target(program, runtime, "verify")
        floats = runtime.floats(program)
        if subject.file is not None and name == "onnxruntime":
            return Runner(subject.file.codes, subject.file, floats)
        return Runner(runtime.edges(program).codes, runtime.compiled(program), floats)

    return make


RUNTIMES: dict[str, Callable[[Subject], Runner]] = {"reference": _reference, **{name: _deployed(name) for name in DEPLOYED}}
"""What can be compared here: the program itself, and the runtimes that compile it."""


def runner_of(name: str, subject: Subject) -> Runner | None:
    """The runtime of a name; None for a target that has no runtime here. ArgumentError for any other name."""
    if name in RUNTIMES:
        return RUNTIMES[name](subject)
    if name in TARGETS and not TARGETS[name].runs_here:
        return None
    unverified = [t.name for t in TARGETS.values() if not t.runs_here]
    raise ArgumentError(f"no runtime {name!r}", got=repr(name), expected=", ".join([*RUNTIMES, *unverified]))
