"""What happens at one call site: fake-quantized floats in training, integer codes in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from truequant.fake import attention, evaluation, one_pass
from truequant.fake.batch_statistics import BatchStatistics, float_statistics, reads_float_statistics
from truequant.fake.clock import local
from truequant.fake.layouts import on_contiguous
from truequant.fake.marks import mark
from truequant.fake.planned import PlannedSite
from truequant.fake.products import product
from truequant.fake.user_ops import traceable
from truequant.planning import LINEAR_OPS
from truequant.planning.actions import BARE, NOTHING_BUT_THE_OP

Function = Callable[..., Any]
_COMPUTES = evaluation.COMPUTES | {"attend": attention.COMPUTES["attend"]}
_ATTENDS = frozenset(("attention", "softmax", "weights", "masked", "biased"))
_KEEP_THEIR_GRID = frozenset(("movement", "concat"))


@dataclass(eq=False)
class RuntimeSite(PlannedSite):
    """A planned site that is called."""

    layer: RuntimeSite | None = None
    quantized_at: RuntimeSite | None = None
    statistics: BatchStatistics | None = None
    """Of a layer in training, until the BatchNorm behind it takes them: those of its float weights."""

    # -- one call ------------------------------------------------------------------------------------------------------
    def run(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call `function` as the plan says and pass its result through the quantizer that sits here."""
        if self.weights and not self.plan.leaf and self.clock.enabled:
            args, kwargs = self._with_weights(args, kwargs)
        if local.marking is not None:
            return self._marked(function, args, kwargs)
        if not self.clock.enabled:
            return function(*args, **kwargs)
        action = self.plan.action
        if self.plan.constants:
            args, kwargs = self._with_constants(args, kwargs)
        if self.quantized_at is not None or action == "clamp":
            y = self._in_one_pass(args, kwargs)
            if y is not None:
                return y
        if action in _ATTENDS:
            return self.finish(self._attends(function, args, kwargs))
        if action == "norm":
            return self.finish(self._unfolded(function, args, kwargs))
        exact = self.exact()
        if exact and (compute := _COMPUTES.get(action)) is not None and self._computes():
            return self.finish(self._computed(compute, function, args, kwargs))
        if local.recorder is not None and action in _KEEP_THEIR_GRID:
            y = function(*args, **kwargs)
            self._record_movement(y)
            return self.finish(y)
        # As in the float model; in evaluation, where torch sums in the order of memory, on contiguous tensors.
        sums = exact and action not in NOTHING_BUT_THE_OP
        return self._finish_result([on_contiguous(function, args, kwargs) if sums else function(*args, **kwargs)])

    def _marked(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """While it is traced for conversion: the op, and a mark where its result is one tensor."""
        folds = self.layer is not None and self.layer.exact()
        y = self._read(args, kwargs) if folds else traceable(self.plan.op, function, args, kwargs)
        return self.finish(mark(y, self.plan.name) if isinstance(y, Tensor) else y)

    def _unfolded(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """A map of channels that is no site of its own: evaluation computes it with its layer."""
        folds = self.layer is not None and self.layer.exact()
        return self._read(args, kwargs) if folds else function(*args, **kwargs)

    def _computed(self, compute: Function, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """What the program computes on codes; where a gradient is wanted, with that of `function`."""
        with torch.no_grad():
            y: Tensor = compute(self, function, args, kwargs)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in (*args, *kwargs.values())):
            return _straight_through(y, function(*args, **kwargs))
        return y

    def _with_constants(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments with the constants among them on their grids."""
        leaves, structure = pytree.tree_flatten((tuple(args), kwargs))
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for place in self.plan.constants:
            quantizer = self.reads[place]
            assert quantizer is not None
            leaves[tensors[place]] = one_pass.called(quantizer, leaves[tensors[place]])
        found: tuple[Sequence[Any], dict[str, Any]] = pytree.tree_unflatten(leaves, structure)
        return found

    def _with_weights(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments of a function call with the weights among them on their grids."""
        own = {id(getattr(self.owner, name)): quantizer for name, quantizer in self.weights.items()}

        def on_grid(leaf: Any) -> Any:
            return own[id(leaf)].on_grid(leaf) if id(leaf) in own else leaf

        return tuple(on_grid(a) for a in args), {name: on_grid(a) for name, a in kwargs.items()}

    def _computes(self) -> bool:
        """Whether its result has a grid, or needs none."""
        return self.emits is not None or (self.plan.action in BARE and bool(self.reads) and self.reads[0] is not None)

    def _attends(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """Softmax, or attention in one call."""
        if self.plan.action == "masked":
            return attention.masked(self, args, kwargs)
        if not self.exact():
            if self.plan.action == "attention":
                return attention.attention_in_training(self, args, kwargs)
            if self.plan.action == "biased":
                return attention.biased_in_training(self, function, args)
            return attention.softmax_in_training(self, function, args, kwargs)
        return self._computed(attention.COMPUTES[self.plan.action], function, args, kwargs)

    def _read(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Of a map of channels: what it reads."""
        return args[self.plan.operand or 0] if args else kwargs["input"]

    def _in_one_pass(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
        """The quantized result of a clamp or sum; None where op and quantizer run apart."""
        x = args[0] if args else None
        if getattr(x, one_pass.QUANTIZED_AT, None) is self:
            return x
        if self.quantized_at is None or self.exact():
            return None
        if self.plan.action == "clamp":
            return one_pass.clamped(self, args, kwargs)
        return one_pass.added(self, args, kwargs) if self.plan.action == "add" else None

    def run_layer(
        self, linear: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Any:
        """Run a layer: `linear(x, weight, bias)` is its sum of products."""
        if local.marking:
            if x.dtype == weight.dtype:
                return self.finish(mark(linear(x, weight, bias), self.plan.name))
            return self.finish(mark(linear(x.to(weight.dtype), weight, bias).float(), self.plan.name))
        if self.exact() and self.weight is not None:
            with torch.no_grad():
                y = evaluation.layer(self, linear, x, weight, bias)
            if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
                y = _straight_through(y, self._float_result(linear, x, weight, bias))
            return self.finish(y)
        if not self.clock.enabled or self.weight is None:
            return self.finish(linear(x, weight, bias))
        factor = self.normalization().factor() if self.folds and self.weight.tied else None
        quantized = self.weight(weight, factor)
        channels = -1 if self.plan.op in LINEAR_OPS else 1
        if reads_float_statistics(self):
            self.statistics = float_statistics(linear, x, weight, bias, channels, self.norm)
        else:
            self.statistics = None
        if self.norm is not None and not self.plan.leaf:
            self.called_with = weight.detach(), None if bias is None else bias.detach()
        if bias is not None and self.norm is None and self.own_bias:
            bias = self._rounded(bias, weight)
        return self._finish_result([product(linear, x, quantized, bias)])

    def _finish_result(self, result: list[Any]) -> Any:
        """As `finish`, for a list with what an op has just returned: a quantizer may write into what nothing else holds."""
        if self.quantizer is not None and isinstance(result[0], Tensor):
            y = one_pass.quantized_in_place(self.quantizer, result)
            if y is not None:
                return y
        return self.finish(result.pop())

    def _record_movement(self, y: Any) -> None:
        """Codes that were only moved lie on the grid that was read."""
        grid = self.emits or (self.reads[0] if self.reads else None)
        if grid is not None and isinstance(y, Tensor):
            local.recorder(self.plan.name, grid.codes(y))

    def _float_result(
        self, linear: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """What an exact result stands for, as a differentiable function of floats."""
        assert self.weight is not None
        factor = self.normalization().factor() if self.folds and self.weight.tied else None
        y = linear(x.to(weight.dtype), self.weight(weight, factor), bias)
        if not self.folds:
            return y
        return self.normalization().applied(y, -1 if self.plan.op in LINEAR_OPS else 1)

    def take_statistics(self) -> BatchStatistics | None:
        """Of a layer: the statistics that the BatchNorm behind it takes in this forward instead of its own."""
        taken, self.statistics = self.statistics, None
        return taken


def _straight_through(exact: Tensor, differentiable: Tensor) -> Tensor:
    """The value of `exact` with the gradient of `differentiable`: what is added is 0 where it is finite."""
    zero = differentiable - differentiable.detach()
    return exact + torch.where(torch.isfinite(differentiable.detach()), zero, 0.0).float()
