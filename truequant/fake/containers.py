"""Containers that iterate over their children: their quantizers are none of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

QUANTIZERS = "quantizers"
"""The name under which a module keeps its quantizers."""


class HidesQuantizers:
    """What a container shows of its children."""

    _modules: dict[str, nn.Module | None]

    def _visible(self) -> dict[str, nn.Module | None]:
        return {k: m for k, m in self._modules.items() if k != QUANTIZERS}

    def __iter__(self) -> Iterator[Any]:
        return iter(self._visible() if isinstance(self, nn.ModuleDict) else self._visible().values())

    def __len__(self) -> int:
        return len(self._visible())

    def keys(self) -> Any:
        return self._visible().keys()

    def items(self) -> Any:
        return self._visible().items()

    def values(self) -> Any:
        return self._visible().values()


class HiddenInSequence(HidesQuantizers):
    """Torch numbers the children of a sequence anew where one comes or goes: the quantizers get no number."""

    @contextlib.contextmanager
    def _aside(self) -> Iterator[Any]:
        """What torch's own class does with the children, while the quantizers are none of them."""
        quantizers = self._modules.pop(QUANTIZERS, None)
        try:
            yield super()
        finally:
            if quantizers is not None:
                self._modules[QUANTIZERS] = quantizers

    def __setitem__(self, index: Any, module: nn.Module) -> None:
        with self._aside() as sequence:
            sequence.__setitem__(index, module)

    def __delitem__(self, index: Any) -> None:
        with self._aside() as sequence:
            sequence.__delitem__(index)

    def insert(self, index: int, module: nn.Module) -> Any:
        with self._aside() as sequence:
            return sequence.insert(index, module)

    def append(self, module: nn.Module) -> Any:
        with self._aside() as sequence:
            return sequence.append(module)

    def __getitem__(self, index: Any) -> Any:
        items = list(self._visible().items())
        if isinstance(index, slice):
            chosen = nn.Sequential() if isinstance(self, nn.Sequential) else nn.ModuleList()
            for name, module in items[index]:
                chosen.add_module(name, module)
            return chosen
        return items[index][1]
