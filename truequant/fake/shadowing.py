"""Attributes of a module that have another value for one call, such as a parameter whose place its quantized form takes."""

from __future__ import annotations

from typing import Any

_MISSING = object()


class shadowed:
    """In this context `module.NAME` is the given value; afterwards it is what it was, parameters and buffers among them.

    Values stand in the module's own dictionary, where Python looks first: nothing is registered, and no hook is called. The
    list of its weights that a recurrent layer keeps follows.

    >>> from torch import nn
    >>> layer = nn.Linear(2, 2)
    >>> with shadowed(layer, weight=None):
    ...     print(layer.weight)
    None
    >>> layer.weight.shape
    torch.Size([2, 2])
    """

    __slots__ = ("before", "own", "values")

    def __init__(self, module: Any, **values: Any) -> None:
        self.own, self.values = module.__dict__, values
        if (flat := self.own.get("_flat_weights")) is not None:
            self.values["_flat_weights"] = [values.get(n, t) for n, t in zip(module._flat_weights_names, flat, strict=True)]

    def __enter__(self) -> None:
        self.before = {name: self.own.get(name, _MISSING) for name in self.values}
        self.own.update(self.values)

    def __exit__(self, *error: object) -> None:
        for name, value in self.before.items():
            if value is _MISSING:
                del self.own[name]
            else:
                self.own[name] = value
