"""What a model takes and returns, as a tree that JSON can hold: tensors by names, and what stands around them.

A name is a string, a constant a number, bool or None, and text `{"text": …}`. A list stands for itself; the others are objects
of one entry, which says the kind: `{"tuple": […]}`, `{"items": [[key, tree], …]}` for a dict in its order, `{"fields": …}` for
a dataclass (a dict whose items are attributes as well), `{"named": …}` for a named tuple. Older files hold `{"dict": {…}}`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from keyword import iskeyword
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

Leaf = Callable[[Any], Any]
_CONSTANTS = (bool, int, float)
_KEYED = frozenset(("items", "fields", "named"))


class Fields(dict[str, Any]):
    """A dict whose items are attributes too: what a dataclass was."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


pytree.register_pytree_node(
    Fields,
    lambda fields: (list(fields.values()), list(fields)),
    lambda values, names: Fields(zip(names, values, strict=True)),
    serialized_type_name="truequant.Fields",
)


def is_dataclass_object(value: object) -> bool:
    """Whether a value is an instance of a dataclass, and not the class."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def tree_of(value: Any, leaf: Leaf) -> Any:
    """The tree of a value; `leaf` makes one of what is neither structure nor constant."""
    if isinstance(value, Mapping):
        kind = "fields" if is_dataclass_object(value) else "items"
        return {kind: [[key, tree_of(item, leaf)] for key, item in value.items()]}
    if is_dataclass_object(value):
        return {"fields": [[f.name, tree_of(getattr(value, f.name), leaf)] for f in dataclasses.fields(value)]}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"named": [[name, tree_of(item, leaf)] for name, item in zip(value._fields, value, strict=True)]}
    if isinstance(value, tuple):
        return {"tuple": [tree_of(item, leaf) for item in value]}
    if isinstance(value, list):
        return [tree_of(item, leaf) for item in value]
    if value is None or type(value) in _CONSTANTS:
        return value
    return {"text": value} if type(value) is str else leaf(value)


def build(tree: Any, values: Mapping[str, Any], fields: type[dict[str, Any]] = Fields) -> Any:
    """The structure of a tree, with what its names stand for. fields: what becomes of a dataclass."""
    match tree:
        case str():
            return values[tree]
        case {"text": text}:
            return text
        case {"tuple": items}:
            return tuple(build(item, values, fields) for item in items)
        case {"dict": items}:
            return {key: build(item, values, fields) for key, item in items.items()}
        case {"items": items}:
            return {key: build(item, values, fields) for key, item in items}
        case {"fields": items}:
            return fields({key: build(item, values, fields) for key, item in items})
        case {"named": items}:
            make: Any = namedtuple  # its names are those of a file
            kind = make("Outputs", [key for key, _ in items])
            return kind(*(build(item, values, fields) for _, item in items))
        case list() | tuple():
            return [build(item, values, fields) for item in tree]
        case _:
            return tree


def names_in(tree: Any) -> Iterator[str]:
    """The names in a tree, in order."""
    if isinstance(tree, str):
        yield tree
    for item in _content(tree):
        yield from names_in(item)


def named_leaves(tree: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """The names in a tree, in order, each with the keys, fields and places that lead to it."""
    if isinstance(tree, str):
        yield way, tree
    elif isinstance(tree, dict):
        ((kind, content),) = tree.items()
        if kind in _KEYED:
            for key, item in content:
                yield from named_leaves(item, (*way, key))
        elif kind != "text":
            for key, item in content.items() if isinstance(content, dict) else enumerate(content):
                yield from named_leaves(item, (*way, key))
    elif isinstance(tree, (list, tuple)):
        for place, item in enumerate(tree):
            yield from named_leaves(item, (*way, place))


def _content(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        ((kind, content),) = tree.items()
        if kind in _KEYED:
            return [item for _, item in content]
        return [] if kind == "text" else list(content.values() if isinstance(content, dict) else content)
    return list(tree) if isinstance(tree, (list, tuple)) else []


def is_tree(tree: Any) -> bool:
    """Whether something that anybody may have written is a tree."""
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return True
    if isinstance(tree, list):
        return all(is_tree(item) for item in tree)
    if not isinstance(tree, dict) or len(tree) != 1:
        return False
    ((kind, content),) = tree.items()
    if kind == "text":
        return isinstance(content, str)
    if kind == "dict":
        return isinstance(content, dict) and all(is_tree(item) for item in content.values())
    if not isinstance(content, list) or kind not in ("tuple", *_KEYED):
        return False
    if kind == "tuple":
        return all(is_tree(item) for item in content)
    return all(
        isinstance(pair, list) and len(pair) == 2 and _is_key(pair[0], kind) and is_tree(pair[1]) for pair in content
    ) and len({repr(key) for key, _ in content}) == len(content)


def _is_key(key: Any, kind: str) -> bool:
    if kind == "items":
        return key is None or isinstance(key, (bool, int, float, str))
    plain = isinstance(key, str) and key.isidentifier() and not iskeyword(key)
    return plain and (kind == "fields" or not key.startswith("_"))


def mapped(value: Any, leaf: Callable[[Tensor], Any]) -> Any:
    """A copy of a value with `leaf` of each tensor in its structure; what is no structure stays the object it is."""
    if isinstance(value, Tensor):
        return leaf(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, leaf) for item in value))
    if type(value) in (list, tuple):
        return type(value)(mapped(item, leaf) for item in value)
    if type(value) is dict:
        return {key: mapped(item, leaf) for key, item in value.items()}
    return _copied(value, leaf) if isinstance(value, Mapping) or is_dataclass_object(value) else value


def _copied(value: Any, leaf: Callable[[Tensor], Any]) -> Any:
    """A mapping or dataclass of a library's or the user's own: a copy of the same class."""
    made: Any = copy.copy(value)
    if isinstance(value, Mapping):
        for key, item in value.items():
            made[key] = mapped(item, leaf)
    else:
        for field in dataclasses.fields(value):
            object.__setattr__(made, field.name, mapped(getattr(value, field.name), leaf))
    return made


def renamed(tree: Any, table: Mapping[str, Any]) -> Any:
    """A tree with what `table` holds for its names: other names, or constants."""
    if isinstance(tree, str):
        return table[tree]
    if isinstance(tree, list):
        return [renamed(item, table) for item in tree]
    if not isinstance(tree, dict) or "text" in tree:
        return tree
    ((kind, content),) = tree.items()
    if kind in _KEYED:
        return {kind: [[key, renamed(item, table)] for key, item in content]}
    return {kind: renamed(content, table) if isinstance(content, list) else {k: renamed(i, table) for k, i in content.items()}}
