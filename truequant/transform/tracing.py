"""The evaluated forward of a prepared model as a graph of torch's."""

from __future__ import annotations

import builtins
import contextlib
import itertools
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from truequant.errors import ConversionError, PlanError
from truequant.fake import marking
from truequant.planning import Plan, arguments_in, call_in, masks_held, tensors_of, tree_of
from truequant.transform.refusals import fix_of, named
from truequant.transform.written_out import WrittenOut

_TRACING = threading.Lock()
"""Held while functions of Python's and torch's are replaced: one trace at a time."""


@dataclass(frozen=True)
class Traced:
    """A graph, and the tree of what the model returns, with the places of the graph's outputs for names.

    miscounted: owners and ops that tracing called more or fewer times than evaluation does.
    """

    exported: torch.export.ExportedProgram
    returned: Any
    miscounted: frozenset[tuple[str, str]]


def traced(model: nn.Module, plan: Plan) -> Traced:
    """The evaluated forward as a graph: for any batch size, or for the example's where the forward fixes the first axis.

    An input may hold its batch on another axis, as the states of a recurrent layer do: then no batch but the example's fits.
    """
    try:
        found = _traced(model, plan, 2)  # not 1: export takes sizes 0 and 1 for constants
    except ConversionError:
        if all(spec.made_up(2) == spec.made_up(None) for spec in plan.inputs):
            raise
        return _traced(model, plan, None)
    return _traced(model, plan, None) if _fixes_batch(found.exported, plan) else found


def _fixes_batch(exported: torch.export.ExportedProgram, plan: Plan) -> bool:
    """Whether the first axis of an input has one size alone, though any was meant to go."""
    sizes = {n.name: n.meta["val"].shape for n in exported.graph.nodes if n.op == "placeholder" and "val" in n.meta}
    traced = [sizes.get(name) for name in exported.graph_signature.user_inputs]
    return any(
        spec.shape[:1] == (None,) and shape is not None and fixed_size(shape[0]) is not None
        for spec, shape in zip(plan.inputs, traced, strict=False)
    )


def _traced(model: nn.Module, plan: Plan, batch: int | None) -> Traced:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    examples = tuple(torch.zeros(spec.made_up(batch), dtype=getattr(torch, spec.dtype), device=device) for spec in plan.inputs)
    axes = tuple({i: torch.export.Dim.AUTO for i, n in enumerate(spec.shape) if n is None} for spec in plan.inputs)
    flat = _Exported(model, call_in(plan))
    try:
        with (
            _TRACING,
            warnings.catch_warnings(),
            _quiet(),
            torch.no_grad(),
            _static_masks(),
            _symbolic_len(model),
            marking() as marks,
        ):
            warnings.simplefilter("ignore")  # torch.export warns about its own internals
            exported = torch.export.export(flat, examples, dynamic_shapes={"tensors": axes}, strict=False)
            exported = exported.run_decompositions({}) if _mutates(exported) else exported
            return Traced(exported, flat.returned.tree, frozenset(marks.miscounted))
    except ConversionError:
        raise
    except PlanError as error:
        raise ConversionError(
            "the forward calls, where it is traced, what it did not call when the model was prepared",
            got=str(error).splitlines()[0],
            expected="the same calls, traced or not",
            fix="prepare with example inputs that take this path: where a mask that hides nothing is left out, one that hides "
            "a place, or no mask",
        ) from error
    except Exception as error:
        if refused := plan.refused():
            raise ConversionError(
                f"no program holds what the evaluated forward computes: {named(refused)}",
                got=refused[0].refused[0],
                expected="ops of truequant.planning.float_ops, whose shapes follow from the shapes of the inputs",
                fix=fix_of(refused),
            ) from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            "the evaluated forward is no static graph",
            got=f"{type(error).__name__}: {first}",
            expected="control flow that does not depend on the values of tensors",
            fix="the prepared model still trains and evaluates as it is",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs each axis of size 1 that it takes for a constant, which is meant."""
    log = logging.getLogger("torch._export.non_strict_utils")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _mutates(exported: torch.export.ExportedProgram) -> bool:
    """Whether anything is overwritten. A program has only values; `run_decompositions` makes them of what is written."""
    return any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in exported.graph.nodes)


@contextlib.contextmanager
def _static_masks() -> Iterator[None]:
    """What evaluation computes is traced, not what a forward would compute for an exporter.

    Libraries build a mask that hides nothing where they are told that a model is exported, and leave it out in evaluation. The
    Transformer containers look at the values of a mask to tell whether it is the causal one, which is only a hint.
    """
    module: Any = nn.modules.transformer
    compiler: Any = torch.compiler
    detect, exporting = module._detect_is_causal_mask, compiler.is_exporting
    module._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    compiler.is_exporting = lambda: False
    try:
        yield
    finally:
        module._detect_is_causal_mask, compiler.is_exporting = detect, exporting


@contextlib.contextmanager
def _symbolic_len(model: nn.Module) -> Iterator[None]:
    """`len(x)` of a tensor as its symbolic first size: Python's own makes a number of it, which fixes the size.

    The name is defined where the model's code looks it up, in the modules of the packages that its classes are from. Python's
    own function stays: a compiler that is first loaded meanwhile would take the other one for it ever after.
    """
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    packages = {kind.__module__.partition(".")[0] for kind in classes} - {"torch", *sys.stdlib_module_names} | {"__main__"}
    loaded = [m for name, m in list(sys.modules.items()) if isinstance(m, ModuleType) and name.partition(".")[0] in packages]
    shadowed = [names for module in loaded if "len" not in (names := vars(module))]
    for names in shadowed:
        names["len"] = _length
    try:
        yield
    finally:
        for names in shadowed:
            del names["len"]


def _length(x: Any) -> Any:
    return x.shape[0] if isinstance(x, Tensor) and x.dim() else builtins.len(x)


class _Returned:
    """The tree of what a model returned, with the place of each tensor for its name: `torch.export` puts attributes back."""

    tree: Any = None


class _Exported(nn.Module):
    """The model as a function of its tensors alone, in the plan's order: `torch.export` names dynamic sizes by parameter.

    Numbers, strings and None that stood among the example inputs are part of the function.
    """

    def __init__(self, model: nn.Module, call: Any) -> None:
        super().__init__()
        self.model, self.call = model, call
        self.returned = _Returned()
        self.places = {path: [axis.tolist() for axis in mask.nonzero().T] for path, mask in masks_held(model).items()}

    def forward(self, *tensors: Any) -> Any:
        args, kwargs = arguments_in(self.call, {str(i): tensor for i, tensor in enumerate(tensors)})
        masks = {id(mask): self.places[path] for path, mask in masks_held(self.model).items()}
        with WrittenOut(masks):
            outputs = self.model(*args, **kwargs)
        count = itertools.count()
        self.returned.tree = tree_of(outputs, lambda leaf: str(next(count)) if isinstance(leaf, Tensor) else None)
        return tensors_of(outputs)


def fixed_size(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_number else None
