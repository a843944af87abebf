"""Trace to learn: one forward in each mode, recorded call by call.

The model runs as it is, on the example inputs, without gradients; random state, buffers and training flags are put back.
No symbolic values are involved, so any Python control flow runs. Each recorded call knows its owner (the innermost module
whose forward was running), the op, and the ordinal of that op among the owner's own calls.
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from truequant.errors import PlanError
from truequant.planning.calls import as_arguments
from truequant.planning.constants import Constants, Learned
from truequant.planning.decomposed import decomposed
from truequant.planning.example import run
from truequant.planning.formulas import Formula, Formulas
from truequant.planning.likes import LIKE, without_examples
from truequant.planning.masks import masks_held
from truequant.planning.names import Names
from truequant.planning.ops import Op, Role, counted_as, op_of
from truequant.planning.outputs import strangers_of, tensors_of
from truequant.planning.structures import mapped


@dataclass(frozen=True, slots=True)
class Ref:
    """An activation among the arguments of a call."""

    value: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that does not depend on the inputs: a parameter or buffer by its name, else anonymous."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    formula: Formula | None = None
    """How it is computed from parameters and buffers, where that is known."""
    hides: bool = False
    """Whether it is a mask to be added: each number is 0, or hides a place."""
    learned: bool = False
    """Whether it is a parameter, or made of one: its numbers will be others."""
    number: float | None = None
    """The one number of a tensor that the forward made, from no parameter or buffer."""
    far: bool = False
    """Whether it holds values, infinities of a mask among them, that no activation has."""

    places: int | None = None
    """Of a mask that a module holds, yes or no: how many places say yes."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that depends on the inputs."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    far: bool = False
    """Whether it holds values, infinities of a mask among them, that no activation has."""
    hides: bool = False
    """Whether each of its numbers is 0, or hides a place as a mask does: -1e4 or less."""

    @property
    def is_float(self) -> bool:
        return self.dtype.is_floating_point


FAR = 1e4
Frame = tuple[tuple[str, int], ...]
"""Modules being called, outermost first, each with its ordinal among the calls of that module by the one before it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call. `args` and `kwargs` hold `Ref` and `Constant` where tensors stood.

    ordinal: among all calls of the op in the owner's own forward; rank: among those on more than constants (see `Constants`).
    """

    op: Op
    owner: str
    frame: Frame
    ordinal: int
    rank: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    location: str
    function: Callable[..., Any] | None = None


@dataclass(slots=True)
class Trace:
    """What one forward did."""

    training: bool
    calls: list[Call] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    module_calls: Counter[str] = field(default_factory=Counter)
    frames: list[Frame] = field(default_factory=list)
    """Of each call of a module, the outermost excepted, in order."""
    op_counts: dict[tuple[str, Frame], Counter[str]] = field(default_factory=dict)
    """Of each call of an owner: how often its own forward calls each op."""
    op_ranks: dict[tuple[str, Frame], Counter[str]] = field(default_factory=dict)
    """The same, of calls on more than constants."""
    strangers: tuple[str, ...] = ()
    """Kinds of what it returned that no program holds."""
    stale: set[int] = field(default_factory=set)
    """Values that an in-place op wrote and that were read through a name that existed before."""


@dataclass(slots=True)
class _Entered:
    """A module whose forward is running: which call of it by the module around it, what its forward called, its constants."""

    name: str
    ordinal: int
    constants: Constants
    called: Counter[str] = field(default_factory=Counter)


class _Recorder(TorchFunctionMode):
    def __init__(self, trace: Trace, names: dict[int, str], masks: set[int]) -> None:
        super().__init__()
        self.trace, self.names, self.masks = trace, names, masks
        self.formulas, self.learned = Formulas(names), Learned()
        self.held = Names(trace.stale)
        self.stack: list[_Entered] = [_Entered("", 0, Constants(nn.Module()))]
        self.frame: Frame = ()

    def add(self, tensor: Tensor) -> int:
        index = self._value(tensor)
        self.held.add(tensor, index)
        return index

    def _value(self, tensor: Tensor) -> int:
        index = len(self.trace.values)
        self.trace.values.append(Value(index, tuple(tensor.shape), tensor.dtype, _far(tensor), _hides(tensor)))
        return index

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = op_of(func) if self.inside else None
        if op is None:
            return func(*args, **kwargs)
        op = counted_as(op, args, kwargs)
        seen = without_examples(func, args, kwargs) if func in LIKE else (tuple(args), dict(kwargs))
        tensors = [t for t in pytree.tree_leaves(seen) if isinstance(t, Tensor)]
        inputs = [(t, i) for t in tensors if (i := self.held.read(t)) is not None]
        around = self.stack[-1]
        counts = self.trace.op_counts.setdefault((around.name, self.frame), Counter())
        ranks = self.trace.op_ranks.setdefault((around.name, self.frame), Counter())
        ordinal, rank = counts[op.name], ranks[op.name]
        counts[op.name] += 1
        constant = not inputs and around.constants.suffice(func, args, kwargs)
        ranks[op.name] += not constant
        if not inputs:
            result = func(*args, **kwargs)
            if constant:
                around.constants.note(result)
            return self._of_constants(op, func, args, kwargs, result)
        recorded_args, recorded_kwargs = pytree.tree_map(self._reference, seen)
        result, outputs = self._called(op, func, args, kwargs, [t for t, _ in inputs])
        if outputs is not None:
            reads = tuple(i for _, i in inputs)
            self.trace.calls.append(
                Call(
                    op, around.name, self.frame, ordinal, rank, recorded_args, recorded_kwargs, reads, outputs,
                    _location(), func,
                )
            )  # fmt: skip
        return result

    def _called(
        self, op: Op, func: Callable[..., Any], args: Sequence[Any], kwargs: Any, inputs: Sequence[Tensor]
    ) -> tuple[Any, tuple[int, ...] | None]:
        """The result of a call that reads `inputs`, and the values that it wrote; None where it computed no tensor."""
        versions = [t._version for t in inputs]
        result = func(*args, **kwargs)
        outputs = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        if func is Tensor.__setitem__ and args[0].is_floating_point() and id(args[0]) not in self.names:
            index = self._value(args[0])
            self.held.overwrite(args[0], None, index, _location())
            return result, (index,)
        if not outputs:
            return result, None
        mutated = [t for t, version in zip(inputs, versions, strict=True) if t._version != version]
        if mutated and len(outputs) == 1 and outputs[0] is mutated[0]:
            # The caller gets another name of the same memory, which tells whether the old one is read afterwards.
            result = outputs[0].view_as(outputs[0])
            index = self._value(result)
            self.held.overwrite(mutated[0], result, index, _location())
            return result, (index,)
        if op.role is Role.FLOAT and not mutated and all(any(o is t for t in inputs) for o in outputs):
            return result, None  # handed its argument back: nothing was computed
        return result, tuple(self.add(t) for t in outputs)

    def _of_constants(self, op: Op, func: Callable[..., Any], args: Sequence[Any], kwargs: Any, result: Any) -> Any:
        """The result of a call in which no input has a part."""
        self.formulas.note(op.name, func, args, kwargs, result)
        self.learned.note(args, kwargs, result)
        return result

    @property
    def inside(self) -> bool:
        """Whether the model's forward is running: its own hooks run before and after it, and are no part of the plan."""
        return len(self.stack) > 1

    def _reference(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        index = self.held.known(leaf)
        if index is not None:
            return Ref(index)
        name, formula = self.names.get(id(leaf)), self.formulas.of(leaf)
        made = name is None and formula is None and leaf.numel() == 1 and leaf.is_floating_point() and not leaf.is_meta
        learned = self.learned.has(leaf)
        hides = not learned and _hides(leaf)
        number, places = float(leaf) if made else None, int(leaf.sum()) if id(leaf) in self.masks else None
        return Constant(name, tuple(leaf.shape), leaf.dtype, formula, hides, learned, number, _far(leaf), places)

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module's forward begins; hooks of its own have run, as calls of the forward around it."""
        if not self.inside:
            self.trace.inputs = [self.add(t) for t in tensors_of((args, kwargs))]
        called = self.stack[-1].called
        ordinal = called[name]
        called[name] += 1
        self.trace.module_calls[name] += 1
        self.stack.append(_Entered(name, ordinal, Constants(module)))
        self._reframe()
        if self.frame:
            self.trace.frames.append(self.frame)

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        """A module's forward ended; hooks of its own run after this, as calls of the forward around it."""
        self.stack.pop()
        self._reframe()
        if not self.inside:
            self.trace.strangers = tuple(strangers_of(outputs))
            self.trace.outputs = [index for t in tensors_of(outputs) if (index := self.held.read(t)) is not None]
        around = self.stack[-1].constants
        if around.suffice(None, args, kwargs):
            around.note(outputs)

    def _reframe(self) -> None:
        self.frame = tuple((e.name, e.ordinal) for e in self.stack[2:])


def _far(tensor: Tensor) -> bool:
    """Whether a number lies beyond 10,000: what masks add to hide a place."""
    if not tensor.is_floating_point() or tensor.device.type == "meta" or not tensor.numel():
        return False
    low, high = torch.aminmax(tensor.detach())
    return bool(low <= -FAR) or bool(high >= FAR)


def _hides(tensor: Tensor) -> bool:
    """Whether every number is 0, or so far below that it hides a place."""
    if not tensor.is_floating_point() or tensor.device.type == "meta" or not tensor.numel():
        return False
    held = tensor.detach()
    if not bool((held.reshape(-1)[:1] == 0) | (held.reshape(-1)[:1] <= -FAR)):
        return False  # most tensors are none, and say so at once
    return bool(((held == 0) | (held <= -FAR)).all())


def _location() -> str:
    """File and line of the nearest caller outside torch and this file."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and "/torch/" not in name:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


@contextlib.contextmanager
def _undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Put back buffers, training flags and random state. BatchNorm stays in eval: it accepts a batch of one there."""
    modes = {m: m.training for m in model.modules()}
    buffers = [(b, b.clone()) for b in model.buffers() if b.device.type != "meta"]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        for module in model.modules():
            module.training = training and not isinstance(module, nn.modules.batchnorm._BatchNorm)
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, mode in modes.items():
            module.training = mode


def trace(model: nn.Module, example_inputs: Any, *, training: bool, unroll: bool) -> Trace:
    """Record one forward. unroll: recurrent layers step by step."""
    result = Trace(training)
    names = {
        id(t): n for n, t in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    }
    recorder = _Recorder(result, names, {id(m) for m in masks_held(model).values() if not m.is_meta})
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise PlanError(
                f"'{name or type(module).__name__}' is a ScriptModule, whose calls cannot be seen",
                fix="pass the nn.Module it was scripted from",
            )
        handles.append(
            module.register_forward_pre_hook(lambda m, a, k, name=name: recorder.enter(name, m, a, k), with_kwargs=True)
        )
        handles.append(
            module.register_forward_hook(
                lambda m, a, k, o: recorder.leave(a, k, o), prepend=True, with_kwargs=True, always_call=True
            )
        )
    own = [m for m in model.modules() if "forward" not in m.__dict__]
    written_out = {m: form for m in own if (form := decomposed(m, unroll=unroll)) is not None}
    for module, form in written_out.items():
        module.__dict__["forward"] = MethodType(form, module)
    args, kwargs = mapped(as_arguments(example_inputs), Tensor.clone)
    try:
        with _undisturbed(model, training), recorder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a probing run without gradients: what it warns of is not the user's run
            run(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module in written_out:
            del module.__dict__["forward"]
    return result
