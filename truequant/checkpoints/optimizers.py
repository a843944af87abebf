"""Optimizers by the names of their parameters: written, matched against a live optimizer, and bound to it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from truequant.checkpoints.fields import field, typed
from truequant.checkpoints.ranks import like
from truequant.checkpoints.tree import TreeReader, TreeWriter
from truequant.errors import ArgumentError, FileError
from truequant.fake import FakeQuantize, WeightQuantizer
from truequant.files import Json

LIKE_PARAMETER = frozenset(
    ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "sum", "square_avg", "grad_avg", "acc_delta",
     "prev", "step_size", "mu", "eta", "ax")
)  # fmt: skip
"""State of torch's optimizers that has the shape of its parameter; `eta` and `mu` may also be single numbers."""


@dataclass(frozen=True, slots=True)
class OptimizerRecord:
    """What a file holds of an optimizer: for each group its parameters' names (None for one that the model does not have)
    and its options, then the state of each parameter in the same order, and whatever else its state dict holds."""

    kind: str
    names: tuple[tuple[str | None, ...], ...]
    options: tuple[dict[str, Any], ...]
    states: tuple[Any, ...]
    rest: dict[str, Any]


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def optimizer_to_json(optimizer: torch.optim.Optimizer, model: nn.Module, writer: TreeWriter) -> Json:
    """JSON of an optimizer; its tensors go to `writer`, named after their parameters."""
    known, packed = _names(model), optimizer.state_dict()
    names = [[known.get(id(p)) for p in group["params"]] for group in optimizer.param_groups]
    states = packed["state"]
    order = [index for group in packed["param_groups"] for index in group["params"]]
    flat = [name for group in names for name in group]
    kept = {index: states[index] for index in order if index in states}
    return {
        "class": type(optimizer).__qualname__,
        "names": [list(group) for group in names],
        "options": [
            writer.encode({k: v for k, v in group.items() if k != "params"}, f"optimizer/group {i}")
            for i, group in enumerate(packed["param_groups"])
        ],
        "states": [
            writer.encode(kept.get(index), f"optimizer/{name or f'parameter {place}'}")
            for place, (index, name) in enumerate(zip(order, flat, strict=True))
        ],
        "rest": writer.encode(
            {k: v for k, v in packed.items() if k not in ("state", "param_groups")}
            | {"state": {k: v for k, v in states.items() if k not in kept}},
            "optimizer",
        ),
    }


def optimizer_from_json(value: Json, reader: TreeReader) -> OptimizerRecord:
    """What a file says of an optimizer. FileError for what `optimizer_to_json` cannot have written."""
    where = f"{reader.where}: optimizer"
    record = typed(value, dict, where)
    names = tuple(
        tuple(None if name is None else typed(name, str, f"{where}: a name") for name in typed(group, list, f"{where}: names"))
        for group in field(record, "names", list, where)
    )
    options = tuple(
        typed(reader.decode(group, "optimizer"), dict, f"{where}: options") for group in field(record, "options", list, where)
    )
    states = tuple(reader.decode(state, "optimizer") for state in field(record, "states", list, where))
    rest = typed(reader.decode(record.get("rest"), "optimizer"), dict, f"{where}: 'rest'")
    field(rest, "state", dict, where)
    if len(options) != len(names) or len(states) != sum(map(len, names)):
        raise FileError(
            f"{where}: its parts do not fit each other",
            got=f"{len(names)} groups of {sum(map(len, names))} names, {len(options)} options, {len(states)} states",
        )
    named = [name for group in names for name in group if name is not None]
    if len(set(named)) < len(named):
        raise FileError(f"{where}: a parameter stands twice in its groups", expected="each parameter once")
    return OptimizerRecord(field(record, "class", str, where), names, options, states, rest)


def match(optimizer: torch.optim.Optimizer, record: OptimizerRecord, model: nn.Module, where: str) -> list[list[Tensor]]:
    """The parameters of each group in the file's order. Learned scales that preparing has made are taken in.

    ArgumentError where the optimizer is of another class or holds other parameters; nothing is changed.
    """
    if type(optimizer).__qualname__ != record.kind:
        raise ArgumentError(
            f"{where}: the optimizer is of another class", got=type(optimizer).__qualname__, expected=record.kind,
            fix=f"build the {record.kind} that was saved",
        )  # fmt: skip
    if len(optimizer.param_groups) != len(record.names):
        raise ArgumentError(
            f"{where}: the optimizer has another number of parameter groups",
            got=len(optimizer.param_groups), expected=len(record.names),
        )  # fmt: skip
    known, parameters, learned = _names(model), dict(model.named_parameters()), _learned(model)
    groups = []
    for index, (group, stored) in enumerate(zip(optimizer.param_groups, record.names, strict=True)):
        live = [known.get(id(p)) for p in group["params"]]
        _check_group(live, stored, learned, f"{where}: group {index}")
        foreign = iter([p for p, name in zip(group["params"], live, strict=True) if name is None])
        groups.append([next(foreign) if name is None else parameters[name] for name in stored])
    flat = [p for group in groups for p in group]
    for place, (parameter, state) in enumerate(zip(flat, record.states, strict=True)):
        _check_state(parameter, state, f"{where}: optimizer: the state of parameter {place}")
    return groups


def _learned(model: nn.Module) -> set[str]:
    """Names of the parameters of quantizers."""
    return {
        f"{name}.{own}"
        for name, m in model.named_modules()
        if isinstance(m, (FakeQuantize, WeightQuantizer))
        for own, _ in m.named_parameters(recurse=False)
    }


def _check_group(live: Sequence[str | None], stored: Sequence[str | None], learned: Set[str], where: str) -> None:
    """ArgumentError where a group of an optimizer holds other parameters than the file's. None: a parameter of no model."""
    lacking = [n for n in stored if n is not None and n not in live and n not in learned]
    extra = [n for n in live if n is not None and n not in stored]
    if lacking or extra or live.count(None) != stored.count(None):
        raise ArgumentError(
            f"{where} of the optimizer holds other parameters",
            got=f"not in the file: {extra[:4] or 'none'}; not in the optimizer: {lacking[:4] or 'none'}",
            expected=f"{len(stored)} parameters: {', '.join(map(str, stored[:4]))}" + (" …" if len(stored) > 4 else ""),
            fix="build the optimizer as it was built, from the parameters of the model that is passed",
        )


def _check_state(parameter: Tensor, state: Any, where: str) -> None:
    if state is None:
        return
    for name, value in typed(state, dict, where).items():
        single = name in ("eta", "mu") and isinstance(value, Tensor) and value.dim() == 0
        if name in LIKE_PARAMETER and isinstance(value, Tensor) and value.shape != parameter.shape and not single:
            raise FileError(f"{where} has another shape in '{name}'", got=tuple(value.shape), expected=tuple(parameter.shape))


def bind(optimizer: torch.optim.Optimizer, record: OptimizerRecord, groups: list[list[Tensor]], where: str) -> None:
    """Give the optimizer the parameters that `match` found, and the file's options and state. FileError if it objects."""
    optimizer.param_groups = [
        {**group, "params": list(parameters)} for group, parameters in zip(optimizer.param_groups, groups, strict=True)
    ]
    for group, options in zip(optimizer.param_groups, record.options, strict=True):
        if "param_names" in options:
            group["param_names"] = options["param_names"]
    flat, start, packed = [p for group in groups for p in group], 0, []
    for options, parameters in zip(record.options, groups, strict=True):
        packed.append({**options, "params": list(range(start, start + len(parameters)))})
        start += len(parameters)
    parts = [
        {name: like(value, parameter) for name, value in state.items()} if isinstance(state, dict) else state
        for parameter, state in zip(flat, record.states, strict=True)
    ]
    states = {i: state for i, state in enumerate(parts) if state is not None} | record.rest["state"]
    rest = {k: v for k, v in record.rest.items() if k != "state"}
    try:
        optimizer.load_state_dict({**rest, "state": states, "param_groups": packed})
    except Exception as error:  # each class objects in its own way
        raise FileError(
            f"{where}: the optimizer does not take its state", got=f"{type(error).__name__}: {error}"[:300],
            expected=f"the state of a {record.kind}",
        ) from error  # fmt: skip
    for parameter, state in zip(flat, parts, strict=True):
        for name, value in (state or {}).items():
            # torch casts a state to its parameter's dtype; what was float32 beside bfloat16 weights has to stay so.
            held = optimizer.state[parameter].get(name)
            if isinstance(value, Tensor) and isinstance(held, Tensor) and held.dtype != value.dtype:
                optimizer.state[parameter][name] = value.to(held.device)


def remembered(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """What puts the optimizer back as it is now: binding makes new groups and new states and leaves these alone."""
    before = dict(optimizer.__dict__)

    def put_back() -> None:
        optimizer.__dict__.clear()
        optimizer.__dict__.update(before)

    return put_back
