"""Calls of functions in a module's own forward: a function mode leads each of them to its site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import (
    _get_function_stack_at,
    _len_torch_function_stack,
    _pop_torch_function_stack,
    _push_on_torch_function_stack,
)
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from truequant.errors import PlanError
from truequant.fake import batch_norms, one_pass
from truequant.fake.clock import Clock, in_backward, local
from truequant.fake.float_linears import run_linear
from truequant.fake.frames import Frame
from truequant.fake.inputs import InputQuantizer
from truequant.fake.layouts import on_contiguous
from truequant.fake.limits import Limits
from truequant.fake.materialized import read_by_view
from truequant.fake.parts import Parts
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.recomputed import checkpoint_around, refuse_part
from truequant.fake.sites import RuntimeSite
from truequant.fake.transposed import TRANSPOSED, as_layer, as_transposed
from truequant.fake.untrained import Untrained
from truequant.planning import Constants, Op, Plan, Role, counted_as, has_op, op_of, out_of_place, tensors_in, writes_in_place
from truequant.planning.actions import GRIDLESS, NOTHING_BUT_THE_OP, PLAIN

Sites = Mapping[tuple[str, int], RuntimeSite]
TAKE_THIS_PATH = "prepare with example inputs that take this path"


@dataclass(eq=False)
class Ranked:
    """Sites of an owner in one mode by frame, op and rank, and what else planning knows of the calls in its own forward."""

    known: dict[str, int] = field(default_factory=dict)
    """How often one forward calls each op on more than constants, at most."""
    sites: dict[tuple[int, ...], dict[tuple[str, int], RuntimeSite]] = field(default_factory=dict)
    needed: dict[tuple[int, ...], dict[str, int]] = field(default_factory=dict)
    """How often it calls ops whose sites differ: where it is less, one was left out, and those behind it moved up."""


@dataclass(eq=False)
class Binding:
    """What `prepare` hangs on a swapped module. Keys of the tables are frame keys."""

    name: str
    clock: Clock
    multiple: bool = False
    callers: Mapping[str, int] | None = None
    """See `OwnerPlan.callers`."""
    frames: tuple[frozenset[tuple[int, ...]], frozenset[tuple[int, ...]]] | None = None
    """Frames in which planning saw it called, in evaluation and in any mode."""
    leaf: dict[tuple[int, ...], RuntimeSite] | None = None
    evaluated: dict[tuple[int, ...], Sites] = field(default_factory=dict)
    trained: dict[tuple[int, ...], Sites] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    ranked: tuple[Ranked, Ranked] | None = None
    """In evaluation and in training, where each call of a function in the module's own forward is looked at.

    None also for plans that were made before there were ranks: `evaluated`, `trained` and `counts` then count all calls, as for
    a compiler, which cannot ask what is a constant.
    """
    needs_calls: bool = False
    """Whether calls of functions in its own forward need to be seen in every forward, of a compiled model too."""
    needs_recorded_calls: bool = False
    """Whether calls of functions in its own forward need to be seen where codes are recorded or sites marked."""
    islands: bool = False
    """Whether they need to be seen in every evaluation: float ops read there what the program's read."""
    unrolls: bool = False
    """Whether recurrent layers run step by step."""
    stray: bool = False
    """Whether planning saw no call in its own forward: outside of a prepared model's forward it is anybody's."""
    outermost: bool = False
    """Whether a call of this module is a step of training."""
    planned_first: Plan | None = None
    """Of the outermost module of a prepared model: its plan, as far as it was asked for."""
    streams: tuple[FakeQuantize, ...] = ()
    """Of the outermost module: quantizers whose width calibration chooses, or has chosen."""
    inputs: tuple[InputQuantizer, ...] = ()
    """Of the outermost module."""
    limits: Limits | None = None
    """Of the outermost module: what keeps learned scales near the ranges that were seen."""
    parts: Parts | None = None
    """Of the outermost module of a prepared model: the modules that were planned."""
    untrained: Untrained | None = None
    """Of the outermost module of a prepared model: parameters as they were, to see whether training moves them."""

    @property
    def plan(self) -> Plan | None:
        """Of the outermost module of a prepared model: its plan, with the widths that were chosen since."""
        plan = self.planned_first
        if plan is None or not self.streams:
            return plan
        known, wide = {q.name: q for q in plan.quantizers if q.stream is not None}, {}
        for quantizer in self.streams:
            quantizer.settle()
            bits, there, stream = quantizer.planned.dtype.bits, known[quantizer.name], quantizer.stream
            if stream is not None and stream.chosen and (there.undecided or there.scheme.dtype.bits != bits):
                wide[quantizer.name] = bits > 8
        if wide:
            self.planned_first = plan.with_chosen(wide)
        return self.planned_first

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self.planned_first = plan

    def planned(self, key: tuple[int, ...], training: bool) -> bool:
        """Whether planning saw the call of that key; a branch of training is none of evaluation."""
        return self.frames is not None and key in self.frames[training]


class CallSites(TorchFunctionMode):
    """Active in one forward of one owner: the n-th call of an op there finds its site."""

    def __init__(self, module: nn.Module, binding: Binding, frame: Frame, training: bool) -> None:
        super().__init__()
        self.binding, self.frame, self.training = binding, frame, training
        compiled = compiling()
        self.constants = None if compiled else Constants(module)
        self.ranked = None if compiled or binding.ranked is None else binding.ranked[training]
        table = self.ranked.sites if self.ranked is not None else binding.trained if training else binding.evaluated
        self.sites: Sites = table.get(frame.key, {})
        self.seen: dict[str, int] = {}
        self.outer: CallSites | None = None
        unwatched = not local.marking and local.recorder is None and not torch.compiler.is_compiling()
        self.plain = training and unwatched
        """Whether an op that has neither weights nor a kernel of its own runs here as it does in the float model."""
        self.evaluates = not training and unwatched and not binding.clock.calibrating
        """Whether one between floats does so too, but for the layout of what it reads."""
        self.recomputes = training and not torch.compiler.is_compiling() and not in_backward()
        if self.recomputes:
            self.around, self.had_gradients = checkpoint_around(), torch.is_grad_enabled()

    def __enter__(self) -> CallSites:
        _push_on_torch_function_stack(self)
        self.outer, local.calls = local.calls, self
        return self

    def __exit__(self, *error: Any) -> None:
        local.calls = self.outer
        _pop_torch_function_stack()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if local.frame is not self.frame:
            return func(*args, **kwargs)
        op = op_of(func)
        if op is None:
            return func(*args, **kwargs)
        constant = self.constants is not None and self.constants.suffice(func, args, kwargs)
        if constant and self.ranked is not None:
            return self._noted(func(*args, **kwargs))
        name = counted_as(op, args, kwargs).name
        ordinal = self.seen.get(name, 0)
        self.seen[name] = ordinal + 1
        site = self.sites.get((name, ordinal))
        if site is not None:
            return self._at(site, func, args, kwargs)
        if constant:
            return self._noted(func(*args, **kwargs))
        self._expect(op, name, ordinal, args)
        return func(*args, **kwargs)

    def _at(self, site: RuntimeSite, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """A call at its site: as the float model's where nothing else is planned, else as the site's action says."""
        if self.recomputes and (checkpoint_around() is not self.around or self.had_gradients != torch.is_grad_enabled()):
            refuse_part(self.binding.name, site.plan.op, self.around, self.had_gradients)
        plan, run = site.plan, _views.get(func, func)
        overwrites = plan.writes_back or kwargs.get("inplace") or writes_in_place(func)
        if self.plain and site.quantized_at is None and not overwrites and not plan.constants and not plan.weights:
            if site.quantizer is None and plan.action in NOTHING_BUT_THE_OP:
                return run(*args, **kwargs)
            if plan.action in PLAIN:
                return one_pass.finished(site, [run(*args, **kwargs)])
        bare = site.quantizer is None and site.emits is None and site.quantized_at is None
        if self.evaluates and bare and not overwrites and not plan.constants and not plan.weights:
            if plan.action in NOTHING_BUT_THE_OP:
                return run(*args, **kwargs)
            if plan.action == "float":
                return on_contiguous(run, args, kwargs)
        args = read_by_view(site, args)
        outer, local.frame = local.frame, Frame(self.frame.key, self.frame.name)
        try:
            if plan.action == "layer" or plan.action in GRIDLESS:
                return _functional_layer(site, func, args, kwargs)
            if plan.op == "batch_norm" and site.layer is not None and self.training and not local.marking:
                return batch_norms.of_function(site, site.layer, func, args, kwargs)
            return _in_place_call(site, func, args, kwargs) if overwrites else site.run(run, args, kwargs)
        finally:
            local.frame = outer

    def reads_constants(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a module that is called here is given constants alone."""
        return self.constants is not None and self.constants.suffice(None, args, kwargs)

    def returned(self, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Any) -> None:
        """A module was called here: of constants alone it makes constants."""
        if self.reads_constants(args, kwargs):
            self._noted(outputs)

    def _noted(self, result: Any) -> Any:
        assert self.constants is not None
        self.constants.note(result)
        return result

    def _expect(self, op: Op, name: str, ordinal: int, args: Sequence[Any]) -> None:
        """PlanError for a call of an op of the table that planning never saw: it would be float, and move others' ordinals."""
        if name != op.name or op.role is Role.IDENTITY or not has_op(name):
            return
        if local.marking and op.role in _MOVED:  # `convert` looks at these itself
            return
        known = self.known(name)
        if ordinal < known or (self.constants is None and all(isinstance(t, Parameter) for t in tensors_in(args))):
            return
        raise PlanError(
            f"{self._where()}: call {ordinal} of '{name}' was not there when the model was prepared",
            got=f"at least {ordinal + 1} calls of '{name}' in one forward, in {_mode(self.training)}", expected=f"{known}",
            fix=TAKE_THIS_PATH,
        )  # fmt: skip

    def known(self, name: str) -> int:
        """How often planning saw one forward call an op in this mode."""
        if self.ranked is not None:
            return self.ranked.known.get(name, 0)
        return self.binding.counts.get(name, (0, 0))[self.training]

    def finish(self) -> None:
        """PlanError where a planned call was left out: those of the same op behind it took the sites of those before them."""
        if self.ranked is None or local.marking:
            return
        for name, needed in self.ranked.needed.get(self.frame.key, _NOTHING).items():
            seen = self.seen.get(name, 0)
            if 0 < seen < needed:
                raise PlanError(
                    f"{self._where()}: a call of '{name}' that was there when the model was prepared was left out",
                    got=f"{seen} calls of '{name}' in one forward, in {_mode(self.training)}", expected=f"{needed}",
                    fix=TAKE_THIS_PATH,
                )  # fmt: skip

    def _where(self) -> str:
        return f"'{self.binding.name}'" if self.binding.name else "the model"


_NOTHING: dict[str, int] = {}


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def compiling() -> bool:
    """Whether `torch.compile` traces this: it cannot tell one tensor from another. `torch.export` runs the forward as it is."""
    return torch.compiler.is_compiling() and not local.marking


def suspend() -> CallSites | None:
    """Take the owner's mode off while a module below it runs: nothing there is a call of the owner's own.

    The frame says so too, where the mode must stay: under another mode, or while compiling, where it costs nothing.
    """
    calls: Any = local.calls
    if not isinstance(calls, CallSites) or torch.compiler.is_compiling():
        return None
    depth = _len_torch_function_stack()
    top: object = _get_function_stack_at(depth - 1) if depth else None
    if calls is not top:
        return None
    _pop_torch_function_stack()
    local.calls = None
    return calls


def resume(calls: CallSites | None) -> None:
    """Put the mode back that `suspend` took off."""
    if calls is not None:
        _push_on_torch_function_stack(calls)
        local.calls = calls


class LeafCall(TorchFunctionMode):
    """Active in one forward of a module of torch's whose one call must be seen with its arguments."""

    def __init__(self, site: RuntimeSite) -> None:
        super().__init__()
        self.site = site

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        op = op_of(func)
        if op is None or op.name != self.site.plan.op:
            return func(*args, **(kwargs or {}))
        return self.site.run(func, args, kwargs or {})


_MOVED = frozenset((Role.MOVEMENT, Role.FLOAT))


def _view(x: Tensor, *shape: Any, **named: Any) -> Tensor:
    """`x.view(…)`, also where a sum lies in another layout here than in the float model (see `truequant.fake.one_pass`)."""
    try:
        return x.view(*shape, **named)
    except RuntimeError:
        if x.is_contiguous():
            raise
        return x.contiguous().view(*shape, **named)


_views: dict[Callable[..., Any], Callable[..., Any]] = {
    Tensor.view: _view,
    Tensor.view_as: lambda x, other: _view(x, other.shape),
}


def _in_place_call(site: RuntimeSite, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An in-place op, run out of place."""
    arguments = {k: v for k, v in kwargs.items() if k != "inplace"}
    return run_in_place(site, func if "inplace" in kwargs else out_of_place(func), args, arguments)


def run_in_place(site: RuntimeSite, plain: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run what overwrites nothing; write the result back where the plan saw the old tensor read afterwards."""
    if not site.plan.writes_back:
        return site.run(plain, args, kwargs)
    held = args[0]
    if torch.is_grad_enabled() and held.requires_grad:  # the backward needs what was read
        args = (held.clone(), *args[1:])
    held.copy_(site.run(plain, args, kwargs))
    return held


def _functional_layer(site: RuntimeSite, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`F.linear(x, w, b)` or `F.conv2d(x, w, b, …)` called on tensors."""
    run = site.run_layer if site.plan.action == "layer" else partial(run_linear, site)
    if site.plan.op in ("matmul", "addmm"):
        bias, x, weight = args if site.plan.op == "addmm" else (None, *args)
        return run(F.linear, x, _planned(site, weight.t()), bias)
    named = dict(zip(("input", "weight", "bias"), args, strict=False)) | {
        k: kwargs[k] for k in ("input", "weight", "bias") if k in kwargs
    }
    rest = {k: v for k, v in kwargs.items() if k not in named}
    if site.plan.op in TRANSPOSED:
        groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
        weight = _planned(site, as_layer(named["weight"], groups))
        return site.run_layer(
            lambda x, w, b: func(x, as_transposed(w, groups), b, *args[3:], **rest), named["input"], weight, named.get("bias")
        )
    linear = func if not rest and len(args) <= 3 else lambda x, w, b: func(x, w, b, *args[3:], **rest)
    return run(linear, named["input"], _planned(site, named["weight"]), named.get("bias"))


def _planned(site: RuntimeSite, weight: Tensor) -> Tensor:
    """`weight`, output channels first. PlanError where it has other channels than the scales planned for this call."""
    scales: torch.Size = site.weight.scale.shape if site.weight is not None else torch.Size()
    if scales and scales[0] != weight.shape[0]:
        raise PlanError(
            f"'{site.plan.name}': this call is given another weight than when the model was prepared",
            got=f"{weight.shape[0]} output channels", expected=f"{scales[0]}",
            fix=TAKE_THIS_PATH,
        )  # fmt: skip
    return weight
