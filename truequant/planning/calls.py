"""How a model is called: the structure of its example's arguments, and what its forward has for those that are left out.

A call is the tree of `{"args": […], "kwargs": {…}, "parameters": […], "defaults": {…}}`, tensors by names: what was given, the
parameters that can be given by position, in order, and the constants that stand for parameters which are not given.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from truequant.errors import ArgumentError, ArgumentTypeError
from truequant.planning.plan import Plan
from truequant.planning.structures import build, tree_of

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Dynamic = Mapping[int | str, Sequence[int]]
"""Axes of any size beside the batch, by position or keyword of the input."""


def as_arguments(example_inputs: Any) -> Arguments:
    """A tensor, a tuple (or list) of positional inputs, or a dict of keyword inputs, as `args, kwargs`."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    raise ArgumentTypeError(
        "example_inputs is no input of a model",
        got=type(example_inputs).__name__,
        expected="a tensor, a tuple of positional inputs, or a dict of keyword inputs",
    )


def as_example(model: nn.Module, example_inputs: Any) -> Any:
    """Example inputs; a dict that the forward takes as its one argument, and not as keywords, is that argument."""
    if not isinstance(example_inputs, Mapping):
        return example_inputs
    if _binds(model, (), example_inputs) or not _binds(model, (example_inputs,), {}):
        return example_inputs
    return (example_inputs,)


def checked_axes(dynamic: Dynamic | None, example_inputs: Any) -> Dynamic:
    """`ArgumentError` for an input or an axis that is not there."""
    args, kwargs = as_arguments(example_inputs)
    there: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    for where, axes in (dynamic or {}).items():
        tensor = there.get(where)
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"dynamic: input {where!r} is no tensor", expected=f"one of {list(there)}")
        if not all(0 <= axis < tensor.dim() for axis in axes):
            raise ArgumentError(
                f"dynamic: input {where!r} has no such axis", got=tuple(axes), expected=f"0 … {tensor.dim() - 1}"
            )
    return dynamic or {}


def _binds(model: nn.Module, args: Sequence[Any], kwargs: Mapping[Any, Any]) -> bool:
    if not all(isinstance(key, str) for key in kwargs):
        return False
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # a forward without a signature takes what it takes
        return True
    return True


def call_of(model: nn.Module, example_inputs: Any) -> str:
    """The call of an example as JSON, with the place of each tensor among all for its name."""
    args, kwargs = as_arguments(example_inputs)
    count = iter(range(1_000_000))

    def leaf(value: Any) -> Any:
        return str(next(count)) if isinstance(value, Tensor) else {"text": f"a {type(value).__name__}"}

    parameters, defaults = _declared(model)
    parts = {"args": list(args), "kwargs": dict(kwargs)}
    found = {name: tree_of(part, leaf) for name, part in parts.items()}
    found |= {"parameters": tree_of(parameters, leaf), "defaults": tree_of(defaults, leaf)}
    return json.dumps({"items": [[name, tree] for name, tree in found.items()]})


def _declared(model: nn.Module) -> tuple[list[str], dict[str, Any]]:
    """Parameters that can be given by position, in order, and the constants that are defaults of any."""
    try:
        declared = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return [], {}
    by_position = [p.name for p in declared if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    constants = {p.name: p.default for p in declared if p.default is None or type(p.default) in (bool, int, float, str)}
    return by_position, constants


def _flat_call(places: Sequence[int | str], constants: Sequence[tuple[int | str, str]]) -> str:
    """The call of a plan that was made before calls were kept: each argument a tensor or a constant."""
    given: dict[int | str, Any] = {where: str(i) for i, where in enumerate(places)}
    given |= {where: tree_of(json.loads(text), str) for where, text in constants}
    args = [given[where] for where in sorted(w for w in given if isinstance(w, int))]
    kwargs = {"items": [[where, tree] for where, tree in given.items() if isinstance(where, str)]}
    return json.dumps({"items": [["args", args], ["kwargs", kwargs], ["parameters", []], ["defaults", {"items": []}]]})


def arguments_in(call: Any, values: Mapping[str, Any]) -> Arguments:
    """`args, kwargs` of a call with what its names stand for."""
    given = build(call, values)
    return tuple(given["args"]), given["kwargs"]


def call_in(plan: Plan) -> Any:
    """The tree of a plan's call."""
    return json.loads(plan.call or _flat_call([spec.where for spec in plan.inputs], plan.constants))


def positional_in(plan: Plan) -> list[str]:
    """The parameters of the model's forward that can be given by position, in order."""
    return [name["text"] for name in dict(call_in(plan)["items"])["parameters"]]
