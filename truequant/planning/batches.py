"""From an item of a data loader to the inputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from truequant.errors import ArgumentTypeError
from truequant.planning.calls import Arguments, as_arguments, call_in
from truequant.planning.plan import Plan
from truequant.planning.structures import build, names_in


@dataclass(frozen=True, slots=True)
class Takes:
    """What a model takes: arguments that hold tensors.

    positional: how many by position; keywords: the names of the others; whole, listed: whether the one argument is a dict, or
    a list or tuple.
    """

    positional: int = 1
    keywords: frozenset[str] = frozenset()
    whole: bool = False
    listed: bool = False
    constants: tuple[Any, ...] = ()
    """What stands behind the one argument by position that holds tensors: None, flags, text."""

    @staticmethod
    def of(call: Any) -> Takes:
        """Of a call (see `truequant.planning.calls`)."""
        parts = dict(call["items"])
        given = [tree for tree in parts["args"] if any(names_in(tree))]
        keywords = frozenset(key for key, tree in parts["kwargs"]["items"] if any(names_in(tree)))
        kind = next(iter(given[0]), "") if len(given) == 1 and isinstance(given[0], dict) else ""
        listed = len(given) == 1 and (isinstance(given[0], list) or kind == "tuple")
        behind = tuple(build(tree, {}) for tree in parts["args"][1:] if not any(names_in(tree)))
        return Takes(len(given), keywords, kind in ("items", "fields"), listed, behind)


def items_of(batches: Iterable[Any], where: str) -> Iterable[Any]:
    """The batches as they are; `ArgumentTypeError` for one batch in its place, which iterating would cut in pieces."""
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        one = isinstance(batches, (Tensor, Mapping))
        shape = f" of shape {tuple(batches.shape)}" if isinstance(batches, Tensor) else ""
        raise ArgumentTypeError(
            f"{where}: batches are no list of batches",
            got=f"{'one ' if one else ''}{type(batches).__name__}{shape}",
            expected="a DataLoader, a list or another iterable of batches",
            fix=f"{where}(…, [batch])" if one else None,
        )
    return batches


def takes_of(plan: Plan | None) -> Takes:
    """What a prepared model takes; None for a layer that was wrapped by hand."""
    return Takes() if plan is None else Takes.of(call_in(plan))


def arguments_of(item: Any, takes: Takes, inputs: Callable[[Any], Any] | None) -> Arguments:
    """`args, kwargs` of an item.

    Without `inputs`, a pair `(x, y)` gives `x` where the model takes one argument, or keyword inputs that `x` holds; a dict is
    the one argument of a model that takes it whole.
    """
    if inputs is not None:
        item = inputs(item)
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        first = item[0]
        if not takes.positional and isinstance(first, Mapping) and takes.keywords <= set(first):
            return (), dict(first)
        if takes.listed and isinstance(first, Tensor):
            return (item,), {}
        if not isinstance(item[1], Tensor) and takes.constants == tuple(item[1:]):
            return tuple(item), {}
        if takes.positional + len(takes.keywords) == 1:
            return (first,), {}
    return inputs_of(item, takes)


def inputs_of(inputs: Any, takes: Takes) -> Arguments:
    """`args, kwargs` of inputs that stand alone: a tensor, a tuple or list of positional inputs, a dict of keyword inputs.

    A dict or list is the one argument of a model that takes it whole.
    """
    alone = takes.positional + len(takes.keywords) == 1
    if takes.whole and isinstance(inputs, Mapping):
        return (inputs,), {}
    if alone and takes.listed and isinstance(inputs, (list, tuple)) and all(isinstance(x, Tensor) for x in inputs):
        return (inputs,), {}
    return as_arguments(inputs)
