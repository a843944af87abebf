"""Containers that iterate over their children: their quantizers are none of them."""

from __future__ import annotations

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
    def __getitem__(self, index: Any) -> Any:
        items = list(self._visible().items())
        if isinstance(index, slice):
            chosen = nn.Sequential() if isinstance(self, nn.Sequential) else nn.ModuleList()
            for name, module in items[index]:
                chosen.add_module(name, module)
            return chosen
        return items[index][1]
