"""Schedulers, scalers, loaders: whatever has `state_dict` and `load_state_dict`, and `torch.Generator`."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import numpy
import safetensors
import torch

from truequant.checkpoints.fields import field, typed
from truequant.checkpoints.tree import TreeReader, TreeWriter
from truequant.errors import ArgumentError, ArgumentTypeError, FileError
from truequant.files import Json


@dataclass(frozen=True, slots=True)
class StatefulRecord:
    """The state of such an object, and the name of its class."""

    kind: str
    state: Any


def stateful_to_json(value: Any, part: str, writer: TreeWriter) -> Json:
    """JSON of an object's state. ArgumentTypeError for an object that has none."""
    _check(value, part, "save_checkpoint")
    return {"class": type(value).__qualname__, "state": writer.encode(_state_of(value), part)}


def stateful_from_json(value: Json, reader: TreeReader, part: str) -> StatefulRecord:
    """What a file says of such an object. FileError for what `stateful_to_json` cannot have written."""
    record = typed(value, dict, f"{reader.where}: {part}")
    return StatefulRecord(field(record, "class", str, f"{reader.where}: {part}"), reader.decode(record.get("state"), part))


def match_stateful(value: Any, record: StatefulRecord, part: str, where: str) -> None:
    """ArgumentError where the object is not of the class, or its state not of the form, that was saved."""
    _check(value, part, "load_checkpoint")
    if type(value).__qualname__ != record.kind:
        raise ArgumentError(
            f"{where}: the {part} is of another class", got=type(value).__qualname__, expected=record.kind,
            fix=f"build the {record.kind} that was saved",
        )  # fmt: skip
    if part == "scheduler" and isinstance(now := _state_of(value), Mapping):  # torch's take any entries, and fail later
        stored = record.state if isinstance(record.state, dict) else {}
        if set(now) != set(stored):
            raise FileError(
                f"{where}: the {part}'s state has other entries",
                got=", ".join(map(str, stored))[:300], expected=", ".join(map(str, now))[:300],
            )  # fmt: skip


def load_stateful(value: Any, record: StatefulRecord, part: str, where: str, undo: ExitStack) -> None:
    """Give the object its state; `undo` gives it back the one that it has now."""
    undo.callback(_load, value, copy.deepcopy(_state_of(value)))
    try:
        _load(value, record.state)
    except Exception as error:  # each class objects in its own way
        raise FileError(
            f"{where}: the {part} does not take its state", got=f"{type(error).__name__}: {error}"[:300],
            expected=f"the state of a {record.kind}",
        ) from error  # fmt: skip


@cache  # reading the metadata of an installed package takes milliseconds
def library_versions() -> dict[str, Json]:
    """Versions of what computes the bits and writes the file."""
    try:
        own = metadata.version("truequant")
    except metadata.PackageNotFoundError:  # run from its sources
        own = "unknown"
    return {
        "python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__,
        "safetensors": safetensors.__version__, "truequant": own,
    }  # fmt: skip


def _check(value: Any, part: str, called: str) -> None:
    complete = callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))
    if not complete and not isinstance(value, torch.Generator):
        raise ArgumentTypeError(
            f"{called}: the {part} has no state to keep", got=f"{type(value).__module__}.{type(value).__qualname__}",
            expected="state_dict() and load_state_dict(state), or a torch.Generator",
            fix="loader=generator, where generator is the one that the DataLoader draws from" if part == "loader" else None,
        )  # fmt: skip


def _state_of(value: Any) -> Any:
    return value.get_state() if isinstance(value, torch.Generator) else value.state_dict()


def _load(value: Any, state: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(state)
    else:
        value.load_state_dict(state)
