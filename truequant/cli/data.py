"""Data from the words of a command line."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from truequant.cli.naming import made
from truequant.errors import ArgumentError

_FORMS = 'an iterable of batches, (train, test), or {"train": batches, "test": batches}'


@dataclass(frozen=True, slots=True)
class Data:
    """Batches to learn from and batches to judge by; the same ones where the user gave one kind only."""

    train: Iterable[Any]
    test: Iterable[Any]


def data_of(name: str, where: str, arguments: Mapping[str, Any] | None = None) -> Data:
    """What a data factory made. `ArgumentError` for something that holds no batches."""
    found = made(name, where, arguments)
    if isinstance(found, Mapping):
        if "train" not in found or not set(found) <= {"train", "test"}:
            raise ArgumentError(f"{where}: '{name}' made unknown parts", got=list(found), expected=_FORMS)
        found = (found["train"], found.get("test", found["train"]))
    elif not (isinstance(found, tuple) and len(found) == 2 and all(_holds_batches(part) for part in found)):
        found = (found, found)
    for part in found:
        if not isinstance(part, Iterable) or isinstance(part, (str, Tensor)):
            raise ArgumentError(f"{where}: '{name}' made no batches", got=type(part).__name__, expected=_FORMS)
    if found[0] is found[1] and isinstance(found[0], Iterator):  # a generator is used up once
        raise ArgumentError(
            f"{where}: '{name}' can be read only once", got=type(found[0]).__name__, fix="a list or a DataLoader"
        )
    return Data(*found)


def _holds_batches(part: Any) -> bool:
    return isinstance(part, Iterable) and not isinstance(part, (str, Tensor, Mapping, tuple))


def first_inputs(batches: Iterable[Any], where: str) -> Any:
    """Example inputs: the first batch's; of an `(x, y)` batch, `x`."""
    item = next(iter(batches), None)
    if item is None:
        raise ArgumentError(f"{where}: there were no batches", expected="at least one")
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[1], Tensor):
        item = item[0]
    return tuple(item) if isinstance(item, list) else item


class _First:
    """The first items of something that knows its length, as something that knows its length."""

    def __init__(self, batches: Any, limit: int) -> None:
        self.batches, self.limit = batches, limit

    def __len__(self) -> int:
        return min(self.limit, len(self.batches))

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.batches, self.limit)


def first(batches: Iterable[Any], limit: int) -> Iterable[Any]:
    """At most `limit` of the batches."""
    return _First(batches, limit) if isinstance(batches, Sized) else itertools.islice(batches, limit)
