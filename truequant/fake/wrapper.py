"""`QATModuleWrapper`: a module whose class was swapped for a subclass of its own, so that its calls find their quantizers.

`isinstance`, hierarchy, parameters and their names stay as they were. Quantizers are submodules in `quantizers`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from truequant.errors import PlanError, StateError
from truequant.fake import batch_norms, layer_steps
from truequant.fake.by_hand import by_hand
from truequant.fake.call_sites import (
    TAKE_THIS_PATH,
    Binding,
    CallSites,
    LeafCall,
    compiling,
    resume,
    run_in_place,
    suspend,
)
from truequant.fake.clock import Clock, in_backward, local
from truequant.fake.containers import QUANTIZERS, HiddenInSequence, HidesQuantizers
from truequant.fake.float_linears import run_linear
from truequant.fake.frames import Frame, key_of
from truequant.fake.hooks import uncounted
from truequant.fake.inputs import quantize_inputs
from truequant.fake.materialized import read_by_view
from truequant.fake.precision import in_other_precision, parameters_in_single, single
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.shadowing import shadowed
from truequant.fake.sites import RuntimeSite
from truequant.fake.transposed import TRANSPOSED, layer_weight, module_call
from truequant.observers import several, widest
from truequant.planning import decomposed
from truequant.planning.actions import GRIDLESS, NEED_ARGUMENTS
from truequant.schemes import QuantScheme

M = TypeVar("M", bound=nn.Module)


class QATModuleWrapper(nn.Module):
    """A swapped module; never constructed, see `QATModuleWrapper.wrap` and `truequant.prepare`.

    It stands before the user's class, which may well have a `_forward` of its own: names of methods here begin with `_qat_`.
    """

    __truequant__ = True
    binding: Binding

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        binding = self.binding
        key = key_of(binding.name, binding.multiple, binding.callers)
        if binding.outermost:
            return self._qat_outermost(args, kwargs)
        around: CallSites | None = local.calls
        if around is not None and compiling():
            around = None
        suspended, outer, frame = suspend(), local.frame, Frame(key, binding.name)
        if around is not None and around.frame is not outer:
            around = None
        local.frame = frame
        try:
            if binding.stray and outer is None:
                return super().forward(*args, **kwargs)
            outputs = self._qat_forward(binding, frame, args, kwargs, around)
        finally:
            local.frame = outer
            resume(suspended)
        if around is not None:
            around.returned(args, kwargs, outputs)
        return outputs

    def _qat_forward(
        self, binding: Binding, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], around: CallSites | None = None
    ) -> Any:
        if binding.leaf is not None:
            site = binding.leaf.get(frame.key)
            if site is not None:
                return self._qat_leaf(site, args, kwargs)
            if not binding.planned(frame.key, self.training):
                self._qat_expect(frame.key, sorted(binding.leaf), args, kwargs, around)
            return super().forward(*args, **kwargs)
        if around is not None and binding.frames is not None and not binding.planned(frame.key, self.training):
            self._qat_expect(frame.key, sorted(binding.frames[self.training]), args, kwargs, around)
        recorded = local.recorder is not None or local.marking is not None or (binding.islands and not self.training)
        counted = binding.ranked is not None and not compiling()
        counted = counted or binding.needs_calls or (binding.needs_recorded_calls and recorded)
        if counted and binding.clock.enabled:
            with CallSites(self, binding, frame, self.training) as calls:
                outputs = self._qat_own_forward(binding, args, kwargs)
            calls.finish()
            if local.marking is not None:
                local.marking.miscounted |= {(binding.name, op) for op, n in calls.seen.items() if n != calls.known(op)}
            return outputs
        return super().forward(*args, **kwargs)

    def _qat_expect(
        self, key: tuple[int, ...], planned: Sequence[tuple[int, ...]], args: Any, kwargs: Any, around: CallSites | None
    ) -> None:
        """PlanError for a call that planning never saw, unless it is of constants alone."""
        if around is None or not around.reads_constants(args, kwargs):
            raise PlanError(
                f"'{self.binding.name}' is called in a way that was not there when the model was prepared",
                got=f"call {key}" if min(key, default=0) >= 0 else "a call by a module that did not call it then",
                expected=f"calls {list(planned)}" if planned else "no call",
                fix=TAKE_THIS_PATH,
            )

    def _qat_own_forward(self, binding: Binding, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward of the module's own class, written out where it would hide what it computes."""
        form = decomposed(self, unroll=binding.unrolls)
        return super().forward(*args, **kwargs) if form is None else form(self, *args, **kwargs)

    def _qat_leaf(self, site: RuntimeSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call of a module that is a site itself: the first case that fits."""
        action, forward = site.plan.action, super().forward
        if action == "layer" or action in GRIDLESS:
            return self._qat_layer(site, args, kwargs)
        if site.weights and site.clock.enabled:
            return site.run(lambda *a, **k: self._qat_with_weights(site, forward, a, k), args, kwargs)
        if action == "weighted":
            return site.finish(self._qat_weighted(site, forward, args, kwargs))
        if action == "norm" and site.layer is not None and self.training:
            return batch_norms.of_module(site, site.layer, forward, args, kwargs)
        if self.__dict__.get("inplace") is True or getattr(type(self), "inplace", False) is True:
            return self._qat_in_place(site, args, kwargs)
        if action in NEED_ARGUMENTS and site.exact():
            with LeafCall(site):
                return forward(*args, **kwargs)
        return site.run(forward, read_by_view(site, args), kwargs)

    def _qat_layer(self, site: RuntimeSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A linear layer or a convolution of torch's: its sum of products is a function of three tensors."""
        module: Any = self
        x, op, bias = args[0] if args else kwargs["input"], site.plan.op, module.bias
        if site.plan.action != "layer":
            return run_linear(site, F.linear, x, module.weight, bias)
        linear: Any = F.linear if op == "linear" else getattr(module, "_conv_forward", None)
        if op in TRANSPOSED:
            linear = module_call(op, module, args, kwargs)
        weight = layer_weight(op, module)
        y = layer_steps.trained(site, linear, x, weight, bias)
        return site.run_layer(linear, x, weight, bias) if y is None else y

    def _qat_with_weights(
        self, site: RuntimeSite, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A layer whose forward reads its quantized weights, which shadow the parameters for this call."""
        limited = self._qat_limited(forward, args, kwargs)
        quantized = {n: quantizer.on_grid(getattr(self, n)) for n, quantizer in site.weights.items()}
        with shadowed(self, **quantized, **limited):
            return forward(*args, **kwargs)

    def _qat_limited(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, None]:
        """An Embedding with `max_norm` renormalizes the rows that it looks up, in place: the float ones first.

        Returns the attributes to shadow, so that the quantized ones are left alone.
        """
        if getattr(self, "max_norm", None) is None:
            return {}
        with torch.no_grad():
            forward(*args, **kwargs)
        return {"max_norm": None}

    def _qat_weighted(
        self, site: RuntimeSite, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A layer whose own forward reads its quantized weight, which shadows the parameter for this call."""
        module: Any = self
        assert site.weight is not None
        limited = self._qat_limited(forward, args, kwargs)
        shadows = {"weight": site.weight(module.weight)} if site.clock.enabled else {}
        with shadowed(self, **shadows, **limited):
            return forward(*args, **kwargs)

    def _qat_in_place(self, site: RuntimeSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module with `inplace=True`, run out of place."""
        with shadowed(self, inplace=False):
            return run_in_place(site, super().forward, args, kwargs)

    def _qat_outermost(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        binding = self.binding
        clock = binding.clock
        if not torch.compiler.is_compiling() and binding.parts is not None:
            binding.parts.check(self)
        counts = (self.training or clock.calibrating) and clock.enabled
        if counts:
            local.committed = set()
            step = clock.step
            clock.begin()
            if binding.limits is not None and not in_backward():
                binding.limits.step(self, clock.step != step)
        narrowed = not self.training and not compiling() and in_other_precision(self)
        if narrowed:
            args, kwargs = single((args, kwargs))
        # An ExitStack would say it shorter; torch.compile before 2.9 takes none.
        with Frame(()) as frame, parameters_in_single(self) if narrowed else contextlib.nullcontext():
            args, kwargs = self._qat_quantized_inputs(args, kwargs)
            outputs = self._qat_forward(binding, frame, args, kwargs)
        if counts:
            clock.watch(outputs)
            if self.training and not torch.compiler.is_compiling() and several() and not in_backward():
                self._qat_merge_ranks()
        return outputs

    def train(self, mode: bool = True) -> Self:
        """As a module's; `eval()` also takes the last step of learned scales into their limits.

        Raises `StateError` where a BatchNorm that belongs to a layer is not the model's any more.
        """
        if self.binding.outermost:
            self._qat_check_norms()
            if self.training and not mode and self.binding.untrained is not None:
                self.binding.untrained.check(self, self.binding.clock.step)
        if self.binding.limits is not None and self.training and not mode:
            self.binding.limits.hold()
        return super().train(mode)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        weight = next(iter(self.binding.leaf.values())).weight if self.binding.leaf else None
        alone = f"{prefix}weight" in state_dict and not any(name.startswith(f"{prefix}quantizers.") for name in state_dict)
        if weight is not None and weight.holds_search and alone:
            weight.release()  # another weight came without a range of its own

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As a module's. Raises `StateError` for the state of a float model, which would leave the ranges of other weights."""
        own = [name for name in self.state_dict() if QUANTIZERS in name.split(".")] if strict and self.binding.outermost else []
        if own and not any(name in state_dict for name in own):
            raise StateError(
                "load_state_dict: this is the state of a float model, and the model is prepared",
                got=f"none of the {len(own)} tensors of its quantizers, such as '{own[0]}'",
                expected="the state of a prepared model",
                fix="model.load_state_dict(weights) comes before tq.prepare(model, …); tq.load_checkpoint takes either file",
            )  # fmt: skip
        return super().load_state_dict(state_dict, strict, assign)

    def _qat_check_norms(self) -> None:
        """What replaces BatchNorm behind our back would be trained, and the one that is gone evaluated and converted."""
        there = list(self.modules())
        modules = {id(m) for m in there}
        bindings = [m.binding for m in there if isinstance(m, QATModuleWrapper)]
        for site in (site for binding in bindings for site in (binding.leaf or {}).values()):
            if site.norm is not None and id(site.norm) not in modules:
                raise StateError(
                    f"'{site.plan.name}': the BatchNorm behind it was replaced after the model was prepared",
                    got="another module in its place", expected="the one that the plan folds into the layer",
                    fix="convert first, then prepare: nn.SyncBatchNorm.convert_sync_batchnorm(model), tq.prepare(model, …)",
                )  # fmt: skip

    def _qat_merge_ranks(self) -> None:
        """What this forward observed on any rank is pending on all of them: scales stay equal everywhere."""
        observers = [m.observer for m in self.modules() if isinstance(m, FakeQuantize)]
        widest([o.pending_minimum for o in observers], [o.pending_maximum for o in observers])

    def _qat_quantized_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return quantize_inputs(self.binding.inputs, args, kwargs) if self.binding.inputs else (args, kwargs)

    # -- hooks ---------------------------------------------------------------------------------------------------------
    def register_forward_pre_hook(self, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
        """As a module's. What the hook calls is no call of the forward around this module (see `truequant.fake.hooks`)."""
        return super().register_forward_pre_hook(uncounted(hook, self.binding.name, "forward pre-hook"), **options)

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
        """As a module's. What the hook calls is no call of the forward around this module (see `truequant.fake.hooks`)."""
        return super().register_forward_hook(uncounted(hook, self.binding.name, "forward hook"), **options)

    # -- by hand -------------------------------------------------------------------------------------------------------
    @staticmethod
    def wrap(
        module: M, weight: QuantScheme | None = None, input: QuantScheme | None = None, output: QuantScheme | None = None
    ) -> M:
        """Make one layer quantization-aware in place: it stays an instance of its own type, with the same parameters.

        weight, input, output: the scheme of that tensor; None leaves it in float. A Linear or Conv1d/2d/3d whose input and
        weight are quantized computes integer codes in `eval()`, as in a prepared model; every other layer computes with the
        quantized values. The wrapped layer is its own outermost module.

        Raises `StateError` for a module that is wrapped already, `ArgumentError` for a weight scheme on a module without one.
        """
        if isinstance(module, QATModuleWrapper):
            raise StateError(f"{type(module).__name__} is wrapped already", fix="module.unwrap() first")
        clock = Clock()
        made = by_hand(module, clock, weight, input, output)
        binding = Binding("", clock, outermost=True, leaf={(): made.site}, limits=made.limits, inputs=made.inputs)
        swap(module, binding)
        module.add_module(QUANTIZERS, made.quantizers)
        return module

    def unwrap(self) -> nn.Module:
        """The layer with its own class again, in place: trained weights, no quantizers."""
        if not isinstance(self, QATModuleWrapper):
            raise StateError(f"{type(self).__name__} is not wrapped", fix="QATModuleWrapper.wrap(module, …)")
        unswap(self)
        return self

    # -- the swap ------------------------------------------------------------------------------------------------------
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (base_class(self),), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


def _rebuild(base: type[nn.Module]) -> nn.Module:
    kind = qat_class(base)
    return kind.__new__(kind)


_SWAPPED: dict[type[nn.Module], type[nn.Module]] = {}


def _forward_like(base: type[nn.Module]) -> Callable[..., Any]:
    """The wrapper's forward, with the signature of the base's: trainers look there for the names of inputs and labels."""
    own = QATModuleWrapper.forward
    forward = FunctionType(own.__code__, own.__globals__, "forward", own.__defaults__, own.__closure__)
    forward.__doc__ = base.forward.__doc__
    with contextlib.suppress(TypeError, ValueError):  # not every callable has a signature
        forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
    return forward


def qat_class(base: type[nn.Module]) -> type[nn.Module]:
    """The swapped class of a class: made once, a subclass of it."""
    if base in _SWAPPED:
        return _SWAPPED[base]
    bases: tuple[type, ...] = (QATModuleWrapper, base)
    if issubclass(base, (nn.Sequential, nn.ModuleList)):
        bases = (QATModuleWrapper, HiddenInSequence, base)
    elif issubclass(base, nn.ModuleDict):
        bases = (QATModuleWrapper, HidesQuantizers, base)
    attributes = {"__module__": __name__, "__doc__": f"`{base.__name__}` with quantizers.", "forward": _forward_like(base)}
    name = f"QAT{base.__name__}"
    if not base.__module__.startswith("torch."):
        # Libraries know a class by its text: what it can record, what a saved configuration names.
        name, attributes = base.__name__, attributes | {"__module__": base.__module__, "__qualname__": base.__qualname__}
    _SWAPPED[base] = type(name, bases, attributes)
    return _SWAPPED[base]


def base_class(module: nn.Module) -> type[nn.Module]:
    """What a swapped module was before."""
    kinds: tuple[Any, ...] = type(module).__mro__
    before: type[nn.Module] = next(k for k in kinds[kinds.index(QATModuleWrapper) + 1 :] if not issubclass(k, HidesQuantizers))
    return before


def swap(module: nn.Module, binding: Binding) -> None:
    """Make `module` a `QATModuleWrapper` in place."""
    if isinstance(module, QATModuleWrapper):
        raise StateError(f"'{binding.name or type(module).__name__}' is prepared already", fix="tq.restore_float(model) first")
    if (
        QUANTIZERS in module.__dict__
        or QUANTIZERS in module._modules
        or QUANTIZERS in module._parameters
        or QUANTIZERS in module._buffers
    ):
        raise PlanError(
            f"'{binding.name or type(module).__name__}' has an attribute '{QUANTIZERS}' of its own",
            fix="rename it: that is where quantizers live",
        )
    module.__class__ = qat_class(type(module))
    module.__dict__["binding"] = binding


def unswap(module: nn.Module) -> None:
    """Give a swapped module its own class back and drop its quantizers."""
    base = base_class(module)
    module._modules.pop(QUANTIZERS, None)
    del module.__dict__["binding"]
    module.__class__ = base


__all__ = ["QUANTIZERS", "Binding", "QATModuleWrapper", "base_class", "qat_class", "swap", "unswap"]
