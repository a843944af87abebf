"""Which tensors of a forward no input has a part in: their arithmetic is no call that planning has a site for.

The trace knows this of every tensor, by following all calls from the inputs on. A training step cannot follow all calls, so
that calls are counted by a rule which both can ask: it knows what one module's own forward can see. What it does not know as
a constant (what the module is given, what its children return) counts as an activation, in planning and at run time alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils import _pytree as pytree

from truequant.planning.likes import LIKE, without_examples
from truequant.planning.ops import tensors_in, writes_in_place

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Constants:
    """Of one call of one module: tensors that the module holds, or that its own forward made of nothing but such tensors.

    They are held weakly, so that looking on keeps no memory alive.
    """

    __slots__ = ("_known",)

    def __init__(self, module: nn.Module) -> None:
        self._known: dict[int, weakref.ref[Tensor]] = {}
        held = vars(module)
        for value in held["_buffers"].values():
            if value is not None:
                self._add(value)
        for value in held["_parameters"].values():
            if value is not None and type(value) is not Parameter:  # lent for one call, as `torch.func.functional_call` does
                self._add(value)
        for name, value in held.items():
            if name in _OF_EVERY_MODULE:
                continue
            if isinstance(value, Tensor):
                self._add(value)
            elif type(value) in (list, tuple):
                self._add_all(value)
            elif type(value) is dict:
                self._add_all(value.values())

    def _add(self, tensor: Tensor) -> None:
        self._known[id(tensor)] = weakref.ref(tensor)

    def _add_all(self, values: Any) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self._add(value)

    def note(self, result: Any) -> None:
        """What a call of constants alone returned."""
        if isinstance(result, Tensor):
            self._add(result)
        elif result is not None:
            self._add_all(pytree.tree_leaves(result))

    def suffice(self, function: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call of `function` with these arguments reads no tensor but constants.

        A constant that something else is written into is none any more.
        """
        if function in LIKE:
            args, kwargs = without_examples(function, args, kwargs)
        if args:
            first = args[0]
            if type(first) is Tensor and id(first) not in self._known:
                return False
        for tensor in tensors_in((*args, *kwargs.values())):
            if not self._has(tensor):
                if function is not None and isinstance(args[0] if args else None, Tensor) and writes_in_place(function):
                    self._known.pop(id(args[0]), None)
                return False
        return True

    def _has(self, tensor: Tensor) -> bool:
        known = self._known.get(id(tensor))
        return (known is not None and known() is tensor) or isinstance(tensor, Parameter)


class Learned:
    """Of one forward: tensors that no input has a part in, but a parameter. They are held weakly."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Tensor]] = {}

    def has(self, tensor: Tensor) -> bool:
        """Whether it is a parameter, or was made of one."""
        known = self._known.get(id(tensor))
        return isinstance(tensor, Parameter) or (known is not None and known() is tensor)

    def note(self, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """What a call of constants returned."""
        if any(self.has(t) for t in tensors_in((*args, *kwargs.values()))):
            self._known.update({id(t): weakref.ref(t) for t in pytree.tree_leaves(result) if isinstance(t, Tensor)})
