"""`convert`: the evaluated model as an integer program."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind

from truequant.errors import CalibrationError, ConversionError, StateError
from truequant.fake import QATModuleWrapper, RuntimeSite, outermost, quantizers, warn_of_exploded_ranges
from truequant.integer import Int8Model, IntegerProgram, ProgramInput
from truequant.integer.binding import WIDENED
from truequant.planning import Plan, TensorSpec, arguments_in, call_in, names_in, renamed, tensors_of
from truequant.planning.actions import GRIDLESS
from truequant.transform import attention
from truequant.transform.computing import ACTIONS
from truequant.transform.islands import cast, constant, island, narrowed
from truequant.transform.lowering import Codes, Floats, Lowering, Tables
from truequant.transform.movement import MOVEMENTS, ON_CODES, PASSING
from truequant.transform.naming import input_names, with_output_names
from truequant.transform.pointwise import POINTWISE
from truequant.transform.tracing import Traced, fixed_size, traced
from truequant.transform.user_ops import CALL, movement

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
    if root.binding.untrained is not None:
        root.binding.untrained.check(root, root.binding.clock.step)
    _check(root)
    warn_of_exploded_ranges(root)
    sites = runtime_sites(root)
    with _evaluating(root):
        program = _lower(traced(root, plan), root, plan, sites)
    int8 = Int8Model(program)
    _try(root, plan, int8)
    return int8


def _try(model: QATModuleWrapper, plan: Plan, int8: Int8Model) -> None:
    """Compare both on made-up inputs: a forward that asks whether it is being traced would ship another model in silence."""
    if any(p.device.type != "cpu" for p in model.parameters()):
        return
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    fixed = any(given.shape[:1] != (None,) for given in int8.program.inputs)
    for place, spec in enumerate(plan.inputs):
        dtype = torch.float32 if spec.dtype in WIDENED else getattr(torch, spec.dtype)
        shape = spec.made_up(None if fixed else 2)
        values = torch.randn(shape, generator=generator) if dtype.is_floating_point else torch.zeros(shape)
        made[str(place)] = values.to(dtype)
    args, kwargs = arguments_in(call_in(plan), made)
    modes = {m: m.training for m in model.modules()}
    try:
        for module in modes:
            module.training = False
        with torch.no_grad():
            expected = tensors_of(model(*args, **kwargs))
    except Exception:  # made-up inputs are none of this model's: nothing can be said
        return
    finally:
        for module, mode in modes.items():
            module.training = mode
    for want, have in zip(expected, tensors_of(int8(*args, **kwargs)), strict=True):
        if want.shape == have.shape and bool(((want == have) | (want != want)).all()):
            continue
        apart = float((want - have).abs().max()) if want.shape == have.shape else None
        rounding = apart is not None and apart <= _ROUNDING * float(want.abs().max())
        raise ConversionError(
            "traced for conversion, the model computes something else than in evaluation",
            got=f"shapes {tuple(have.shape)}"
            if apart is None
            else f"outputs that differ on made-up inputs, by up to {apart}" + ", the rounding of float sums" * rounding,
            expected="the outputs of model.eval(), bit for bit",
            fix="a layer that the config leaves in float adds up in another order where its weights need gradients: "
            "quantize it, or model.requires_grad_(False) before tq.convert(model)"
            if rounding
            else "look in the forward for control flow that asks whether it is being traced or compiled",
        )


_ROUNDING = 1e-5
"""By how much of the largest output two orders of a float sum may be apart."""


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
    alone = {s.weight for s in runtime_sites(model).values() if s.plan.action in GRIDLESS}
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
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; modes are put back without committing anything."""
    modes = {m: m.training for m in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _lower(found: Traced, model: QATModuleWrapper, plan: Plan, sites: dict[str, RuntimeSite]) -> IntegerProgram:
    exported = found.exported
    for node in exported.graph.nodes:  # some that torch.export moved are missing among the users of what they read
        for read in node.all_input_nodes:
            read.users.setdefault(node)
    exported.graph.eliminate_dead_code()
    signature = exported.graph_signature
    tensors = {**dict(exported.state_dict), **exported.constants}
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    constants = {placeholder: tensors[name] for placeholder, name in names.items() if isinstance(tensors.get(name), Tensor)}
    lowering = Lowering(
        Tables({**ACTIONS, **attention.ACTIONS}, {**MOVEMENTS, CALL: movement}, ON_CODES, POINTWISE, PASSING, island, cast),
        sites,
        {q.name: q.quantizer for q in model.binding.inputs},
        constants,
        found.miscounted,
    )
    specs = dict(zip(signature.user_inputs, plan.inputs, strict=False))
    given, inputs = input_names(plan), list[ProgramInput]()
    outputs: Any = None
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            if node.name in constants:
                lowering.values[node] = constants[node.name]
            elif node.name in specs:
                spec = specs[node.name]
                name = given[spec.name]
                shape = _shape(spec, node.meta["val"].shape)
                alone = isinstance(spec.where, str) and sum(other.where == spec.where for other in plan.inputs) == 1
                dtype = "float32" if spec.dtype in WIDENED else spec.dtype
                inputs.append(ProgramInput(name, dtype, shape, str(spec.where) if alone else None))
                lowering.values[node] = narrowed(lowering, name) if dtype == "float64" else Floats(name)
        elif node.op == "call_function":
            lowering.lower(node)
        elif node.op == "output":
            kinds = [spec.kind for spec in signature.output_specs]
            leaves = [leaf for leaf, kind in zip(node.args[0], kinds, strict=True) if kind is OutputKind.USER_OUTPUT]
            outputs = _outputs(lowering, leaves, found.returned, inputs)  # and not the buffers and inputs that were overwritten
    nodes, edges = lowering.read_by(names_in(outputs))
    nodes, renaming = with_output_names(nodes, outputs, plan, given.values())
    call = renamed(call_in(plan), {str(i): given[spec.name] for i, spec in enumerate(plan.inputs)})
    return IntegerProgram(tuple(inputs), nodes, edges, renamed(outputs, renaming), plan.target.name, call)


def _shape(spec: TensorSpec, traced: Sequence[Any]) -> tuple[int | None, ...]:
    """Sizes of an input as traced, None where any size goes. `ConversionError` where the forward fixes one meant to be free."""
    sizes = tuple(fixed_size(s) for s in traced)
    for axis, (planned, size) in enumerate(zip(spec.shape, sizes, strict=True)):
        if planned is None and size is not None and axis > 0:
            raise ConversionError(
                f"'{spec.name}': axis {axis} cannot be dynamic: the forward fixes its size",
                got=size,
                expected="ops that take any size; recurrent layers are traced for one length",
                fix="prepare with an example of two or more there: torch takes a size of one for a constant"
                if size == 1
                else "leave the axis out of dynamic=…",
            )
    return sizes


def _outputs(lowering: Lowering, leaves: Any, returned: Any, inputs: Sequence[ProgramInput]) -> Any:
    """The structure that the model returns, with names of values for tensors."""
    names: list[Any] = []
    for leaf in leaves:
        value = lowering.values.get(leaf) if isinstance(leaf, torch.fx.Node) else leaf
        if isinstance(value, Tensor) and inputs:
            value = constant(lowering, value, inputs[0].name)
        if not isinstance(value, (Codes, Floats)):
            raise ConversionError(
                "the model returns something that the program cannot hold",
                got=type(value).__name__,
                expected="tensors, numbers, None",
            )
        names.append(lowering.floats(value).name)
    return renamed(returned, {str(i): name for i, name in enumerate(names)})
