"""`convert`: the evaluated model as an integer program."""

from __future__ import annotations

import builtins
import contextlib
import json
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from truequant.errors import CalibrationError, ConversionError, StateError
from truequant.fake import QATModuleWrapper, RuntimeSite, local, outermost, quantizers
from truequant.integer import Int8Model, IntegerProgram, ProgramInput
from truequant.planning import Plan, TensorSpec, plain, tensors_of
from truequant.transform.actions import ACTIONS
from truequant.transform.islands import cast, island
from truequant.transform.lowering import Codes, Floats, Lowering, Tables
from truequant.transform.movement import MOVEMENTS, ON_CODES, PASSING
from truequant.transform.registered import CALL, movement
from truequant.transform.written_out import WrittenOut

_TRACING = threading.Lock()
"""Held while functions of Python's and torch's are replaced: one trace at a time."""


def convert(model: nn.Module) -> Int8Model:
    """The Int8 model: int8 weights, int32 biases, the very codes that `model.eval()` computes. `model` is left as it is.

    Raises `PlanError` for a module that was replaced after `prepare`, `CalibrationError` for a range that was never observed,
    `ConversionError` for a parameter or range that is not finite, an op that the program cannot hold, or a forward that is no
    static graph. Where the forward fixes the first axis of an input (a recurrent layer over time, a loop over it), the program
    takes the size of the example that was prepared with.
    """
    root = outermost(model)
    plan = root.binding.plan
    if plan is None:
        raise StateError(
            f"{type(model).__name__} was wrapped by hand: a layer alone is no program", fix="tq.prepare(model, example_inputs)"
        )
    if root.binding.parts is not None:
        root.binding.parts.check(root)
    _check(root)
    sites = runtime_sites(root)
    with _marking(root):
        program = _lower(_export(root, plan), root, plan, sites)
    int8 = Int8Model(program)
    _try(root, plan, int8)
    return int8


def _try(model: QATModuleWrapper, plan: Plan, int8: Int8Model) -> None:
    """Compare both on made-up inputs: a forward that asks whether it is being traced would ship another model in silence."""
    if any(p.device.type != "cpu" for p in model.parameters()):
        return
    generator = torch.Generator().manual_seed(0)
    made: dict[int | str, Tensor] = {}
    fixed = {given.name for given in int8.program.inputs if given.shape[:1] != (None,)}
    for spec in plan.inputs:
        dtype = getattr(torch, spec.dtype)
        shape = spec.made_up(None if f"{spec.name}.float" in fixed else 2)
        values = torch.randn(shape, generator=generator) if dtype.is_floating_point else torch.zeros(shape)
        made[spec.where] = values.to(dtype)
    constants = {where: json.loads(text) for where, text in plan.constants}
    args, kwargs = _arguments(made)
    all_args, all_kwargs = _arguments(dict(made) | constants)
    modes = {m: m.training for m in model.modules()}
    try:
        for module in modes:
            module.training = False
        with torch.no_grad():
            expected = tensors_of(model(*all_args, **all_kwargs))
    except Exception:  # made-up inputs are none of this model's: nothing can be said
        return
    finally:
        for module, mode in modes.items():
            module.training = mode
    for want, have in zip(expected, tensors_of(int8(*args, **kwargs)), strict=True):
        if want.shape != have.shape or not bool(((want == have) | (want != want)).all()):
            raise ConversionError(
                "traced for conversion, the model computes something else than in evaluation",
                got=f"outputs that differ on made-up inputs, by up to {float((want - have).abs().max())}"
                if want.shape == have.shape else f"shapes {tuple(have.shape)}",
                expected="the outputs of model.eval(), bit for bit",
                fix="look in the forward for control flow that asks whether it is being traced or compiled",
            )  # fmt: skip


def runtime_sites(model: nn.Module) -> dict[str, RuntimeSite]:
    """All sites of a prepared model by name."""
    found: dict[str, RuntimeSite] = {}
    for module in model.modules():
        if not isinstance(module, QATModuleWrapper):
            continue
        binding = module.binding
        for table in (
            [binding.leaf or {}]
            if binding.leaf is not None
            else [dict(enumerate(t.values())) for t in binding.evaluated.values()]
        ):
            found |= {site.plan.name: site for site in table.values()}
    return found


def _check(model: nn.Module) -> None:
    """Refuse what cannot be deployed, all of it at once."""
    alone = {s.weight for s in runtime_sites(model).values() if s.plan.action in ("weight_only", "dynamic")}
    unset = [name for name, q in quantizers(model) if not q.is_calibrated and q not in alone]  # their weights say it all
    if unset:
        raise CalibrationError(
            f"{len(unset)} ranges were never observed: {', '.join(repr(n) for n in unset[:5])}"
            + (" …" if len(unset) > 5 else ""),
            fix="tq.calibrate(model, batches), or a training step, before tq.convert(model)",
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and ".observer." not in name and not bool(torch.isfinite(tensor).all()):
            raise ConversionError(
                f"'{name}' is not finite",
                got="NaN or infinity",
                expected="finite numbers",
                fix="look for the step at which the loss broke",
            )


@contextlib.contextmanager
def _marking(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with marks instead of quantizers; modes are put back without committing anything."""
    modes = {m: m.training for m in model.modules()}
    try:
        for module in modes:
            module.training = False
        local.marking = True
        yield
    finally:
        local.marking = False
        for module, mode in modes.items():
            module.training = mode


def _export(model: nn.Module, plan: Plan) -> torch.export.ExportedProgram:
    """The evaluated forward as a graph: for any batch size, or for the example's where the forward fixes the first axis."""
    exported = _traced(model, plan, 2)  # not 1: export takes sizes 0 and 1 for constants
    return _traced(model, plan, None) if _fixes_batch(exported, plan) else exported


def _fixes_batch(exported: torch.export.ExportedProgram, plan: Plan) -> bool:
    """Whether the first axis of an input has one size alone, though any was meant to go."""
    sizes = {n.name: n.meta["val"].shape for n in exported.graph.nodes if n.op == "placeholder" and "val" in n.meta}
    traced = [sizes.get(name) for name in exported.graph_signature.user_inputs]
    return any(
        spec.shape[:1] == (None,) and shape is not None and _fixed_size(shape[0]) is not None
        for spec, shape in zip(plan.inputs, traced, strict=False)
    )


def _traced(model: nn.Module, plan: Plan, batch: int | None) -> torch.export.ExportedProgram:
    local.shifted = set()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    places = [spec.where for spec in plan.inputs]
    constants = {where: json.loads(text) for where, text in plan.constants}
    positions = sorted(where for where in (*places, *constants) if isinstance(where, int))
    if len(set(places)) != len(places) or positions != list(range(len(positions))):
        raise ConversionError(
            "an input of the model is no plain tensor",
            got=f"tensors in arguments {places}",
            expected="each argument one tensor",
            fix="wrap the model in one whose forward takes the tensors",
        )
    examples = tuple(torch.zeros(spec.made_up(batch), dtype=getattr(torch, spec.dtype), device=device) for spec in plan.inputs)
    axes = tuple({i: torch.export.Dim.AUTO for i, n in enumerate(spec.shape) if n is None} for spec in plan.inputs)
    flat = _Exported(model, places, constants)
    try:
        with _TRACING, warnings.catch_warnings(), torch.no_grad(), _static_masks(), _symbolic_len(model):
            warnings.simplefilter("ignore")  # torch.export warns about its own internals
            exported = torch.export.export(flat, examples, dynamic_shapes={"tensors": axes}, strict=False)
            return exported.run_decompositions({}) if _mutates(exported) else exported
    except ConversionError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            "the evaluated forward is no static graph",
            got=f"{type(error).__name__}: {first}",
            expected="control flow that does not depend on the values of tensors",
            fix="the prepared model still trains and evaluates as it is",
        ) from error


def _mutates(exported: torch.export.ExportedProgram) -> bool:
    """Whether anything is overwritten. A program has only values; `run_decompositions` makes them of what is written."""
    return any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in exported.graph.nodes)


@contextlib.contextmanager
def _static_masks() -> Iterator[None]:
    """The Transformer containers look at the values of a mask to tell whether it is the causal one. It is only a hint."""
    module: Any = nn.modules.transformer
    detect = module._detect_is_causal_mask
    module._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    try:
        yield
    finally:
        module._detect_is_causal_mask = detect


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


class _Exported(nn.Module):
    """The model as a function of its tensors alone, in the plan's order: `torch.export` names dynamic sizes by parameter.

    Numbers, strings and None that stood among the example inputs are part of the function.
    """

    def __init__(self, model: nn.Module, places: list[int | str], constants: dict[int | str, Any]) -> None:
        super().__init__()
        self.model, self.places, self.constants = model, places, constants

    def forward(self, *tensors: Any) -> Any:
        args, kwargs = _arguments(dict(zip(self.places, tensors, strict=True)) | self.constants)
        with WrittenOut():
            return plain(self.model(*args, **kwargs))


def _arguments(given: dict[int | str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional arguments in order, and keywords."""
    positions = sorted(where for where in given if isinstance(where, int))
    return [given[where] for where in positions], {where: v for where, v in given.items() if isinstance(where, str)}


def _lower(
    exported: torch.export.ExportedProgram, model: QATModuleWrapper, plan: Plan, sites: dict[str, RuntimeSite]
) -> IntegerProgram:
    exported.graph.eliminate_dead_code()
    signature = exported.graph_signature
    tensors = {**dict(exported.state_dict), **exported.constants}
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    constants = {placeholder: tensors[name] for placeholder, name in names.items() if isinstance(tensors.get(name), Tensor)}
    lowering = Lowering(
        Tables(ACTIONS, {**MOVEMENTS, CALL: movement}, ON_CODES, PASSING, island, cast),
        sites,
        {q.name: q.quantizer for q in model.binding.inputs},
        constants,
    )
    specs = dict(zip(signature.user_inputs, plan.inputs, strict=False))
    inputs: list[ProgramInput] = []
    outputs: Any = None
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            if node.name in constants:
                lowering.values[node] = constants[node.name]
            elif node.name in specs:
                spec = specs[node.name]
                name = f"{spec.name}.float"
                shape = _shape(spec, node.meta["val"].shape)
                inputs.append(ProgramInput(name, spec.dtype, shape, spec.where if isinstance(spec.where, str) else None))
                lowering.values[node] = Floats(name)
        elif node.op == "call_function":
            lowering.lower(node)
        elif node.op == "output":
            kinds = [spec.kind for spec in signature.output_specs]
            leaves = [leaf for leaf, kind in zip(node.args[0], kinds, strict=True) if kind is OutputKind.USER_OUTPUT]
            outputs = _outputs(lowering, leaves, exported)  # and not the buffers and inputs that were overwritten
    return IntegerProgram(tuple(inputs), tuple(lowering.nodes), lowering.edges, outputs, plan.target.name)


def _shape(spec: TensorSpec, traced: Sequence[Any]) -> tuple[int | None, ...]:
    """Sizes of an input as traced, None where any size goes. `ConversionError` where the forward fixes one meant to be free."""
    sizes = tuple(_fixed_size(s) for s in traced)
    for axis, (planned, size) in enumerate(zip(spec.shape, sizes, strict=True)):
        if planned is None and size is not None and axis > 0:
            raise ConversionError(
                f"'{spec.name}': axis {axis} cannot be dynamic: the forward fixes its size",
                got=size,
                expected="ops that take any size; recurrent layers are traced for one length",
                fix="leave the axis out of dynamic=…",
            )
    return sizes


def _fixed_size(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_number else None


def _outputs(lowering: Lowering, leaves: Any, exported: torch.export.ExportedProgram) -> Any:
    """The structure that the model returns, with names of values for tensors."""
    names: list[Any] = []
    for leaf in leaves:
        value = lowering.values.get(leaf) if isinstance(leaf, torch.fx.Node) else leaf
        if isinstance(value, (Codes, Floats)):
            names.append(lowering.floats(value).name)
        elif value is None or isinstance(value, (int, float, bool)):
            names.append(value)
        else:
            raise ConversionError(
                "the model returns something that the program cannot hold",
                got=type(value).__name__,
                expected="tensors, numbers, None",
            )
    spec = exported.call_spec.out_spec
    assert spec is not None
    return _tree(pytree.tree_unflatten(names, spec))


def _tree(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"tuple": [_tree(v) for v in value]}
    if isinstance(value, list):
        return [_tree(v) for v in value]
    if isinstance(value, dict):
        return {"dict": {str(k): _tree(v) for k, v in value.items()}}
    return value
