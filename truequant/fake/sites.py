"""What happens at one call site: fake-quantized floats in training, integer codes in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from truequant import kernels, numerics
from truequant.fake import evaluation, passes
from truequant.fake.clock import Clock, local
from truequant.fake.layouts import on_contiguous
from truequant.fake.marks import mark
from truequant.fake.norms import BatchStatistics, float_statistics, reads_float_statistics
from truequant.fake.products import product
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.registered import traceable
from truequant.fake.transposed import layer_weight
from truequant.fake.weights import WeightQuantizer
from truequant.planning import Site
from truequant.schemes import ArithmeticRule

Function = Callable[..., Any]
_MOVES = frozenset(("movement", "concat", "identity", "clamp"))
"""Actions that compute nothing whose bits could depend on the layout of what is read."""


@dataclass(eq=False)
class RuntimeSite:
    """A planned site with the quantizers and modules that the plan names."""

    plan: Site
    clock: Clock
    owner: nn.Module
    reads: tuple[FakeQuantize | None, ...] = ()
    weight: WeightQuantizer | None = None
    emits: FakeQuantize | None = None
    quantizer: FakeQuantize | None = None
    norm: nn.Module | None = None
    """Of a layer: the BatchNorm that folds into it."""
    layer: RuntimeSite | None = None
    """Of such a BatchNorm: the layer's site."""
    weights: dict[str, WeightQuantizer] = field(default_factory=dict)
    """Of a float layer: quantizers of its parameters."""
    carries: RuntimeSite | None = None
    """Where the quantizer sits that runs in one training pass with this op."""
    arithmetic: ArithmeticRule = "onnxruntime"
    statistics: BatchStatistics | None = None
    """Of a layer in training, until the BatchNorm behind it takes them: those of its float weights."""

    def exact(self) -> bool:
        """Whether this site computes on codes now."""
        if not self.clock.enabled or self.clock.calibrating or self.owner.training:
            return False
        return self.norm is None or not self.norm.training

    # -- one call ------------------------------------------------------------------------------------------------------
    def run(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call `function` as the plan says and pass its result through the quantizer that sits here."""
        name = self.plan.name
        if local.marking:
            fused_norm = self.layer is not None and self.layer.exact()
            y = args[0] if fused_norm else traceable(self.plan.op, function, args, kwargs)
            return self.finish(mark(y, name) if isinstance(y, Tensor) else y)
        if not self.clock.enabled:
            return function(*args, **kwargs)
        action = self.plan.action
        if self.carries is not None or action == "clamp":
            y = self._in_one_pass(args, kwargs)
            if y is not None:
                return y
        if action == "norm":
            y = args[0] if self.layer is not None and self.layer.exact() else function(*args, **kwargs)
        elif self.exact() and (compute := evaluation.COMPUTES.get(action)) is not None and (self.emits is not None):
            with torch.no_grad():
                y = compute(self, function, args, kwargs)
            if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
                y = _straight_through(y, function(*args, **kwargs))
        elif local.recorder is not None and action in ("movement", "concat"):
            y = function(*args, **kwargs)
            self._record_movement(y)
        elif action in _MOVES or not self.exact():
            return self._finish_result([function(*args, **kwargs)])
        else:
            return self._finish_result([on_contiguous(function, args, kwargs)])
        return self.finish(y)

    def _in_one_pass(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
        """The quantized result of a clamp or sum; None where op and quantizer run apart."""
        x = args[0] if args else None
        if getattr(x, passes.CARRIED, None) is self:
            return x
        if self.carries is None or self.exact():
            return None
        if self.plan.action == "clamp":
            return passes.clamped(self, args, kwargs)
        return passes.added(self, args, kwargs) if self.plan.action == "add" else None

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
        factor = self.normalization().factor() if self.norm is not None and self.weight.tied else None
        quantized = self.weight(weight, factor)
        self.statistics = float_statistics(linear, x, weight, bias) if reads_float_statistics(self) else None
        if bias is not None and self.norm is None:
            bias = self._rounded(bias, weight)
        return self._finish_result([product(linear, x, quantized, bias)])

    def _finish_result(self, result: list[Any]) -> Any:
        """As `finish`, for a list with what an op has just returned: a quantizer may write into what nothing else holds."""
        if self.quantizer is not None and isinstance(result[0], Tensor):
            y = passes.alone(self.quantizer, result)
            if y is not None:
                return y
        return self.finish(result.pop())

    def finish(self, y: Any) -> Any:
        """The quantizer behind this site."""
        if self.quantizer is None:
            return y
        if not isinstance(y, Tensor):
            return self._finish_part(y)
        if local.marking:
            return mark(y, f"{self.plan.name}:quantizer")
        y = self.quantizer(y)
        if local.recorder is not None and not self.plan.fused_into and self.plan.action == "float":
            local.recorder(f"{self.plan.name}.codes", self.quantizer.codes(y))
        return y

    def _finish_part(self, results: Any) -> Any:
        """Of several tensors, the one that is read in integer."""
        leaves, structure = pytree.tree_flatten(results)
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if self.plan.part is None or self.plan.part >= len(tensors):
            return results
        leaves[tensors[self.plan.part]] = self.finish(leaves[tensors[self.plan.part]])
        return pytree.tree_unflatten(leaves, structure)

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
        factor = self.normalization().factor() if self.norm is not None and self.weight.tied else None
        y = linear(x.to(weight.dtype), self.weight(weight, factor), bias)
        if self.norm is None:
            return y
        norm: Any = self.norm
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)

    def own_weight(self) -> Tensor | None:
        """The weight of the module that is this layer, output channels first."""
        weight = getattr(self.owner, "weight", None)
        return layer_weight(self.plan.op, self.owner) if isinstance(weight, Tensor) else None

    # -- bias and BatchNorm in training --------------------------------------------------------------------------------
    def normalization(self) -> numerics.Normalization:
        """The BatchNorm of this layer, with running statistics."""
        norm: Any = self.norm
        return numerics.Normalization(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)

    def take_statistics(self) -> BatchStatistics | None:
        """Of a layer: the statistics that the BatchNorm behind it takes in this forward instead of its own."""
        taken, self.statistics = self.statistics, None
        return taken

    def _ready(self) -> bool:
        return not self.clock.calibrating and self.reads[0] is not None and self.reads[0].is_calibrated

    def _weight_scale(self, weight: Tensor) -> Tensor:
        """The scale with which this layer's weight was quantized in this forward."""
        quantizer = self.weight
        assert quantizer is not None
        if quantizer.training and quantizer.quantizing and quantizer.follows_weight():
            return quantizer.scale  # it has just been read from the weight
        return quantizer.scale_of(weight, self.normalization().factor() if self.norm is not None else None)

    def _bias_scale(self, weight: Tensor) -> Tensor:
        """`sx * sw` of the folded weight, float64, `(C,)` or `(1,)`."""
        assert self.weight is not None
        assert self.reads[0] is not None
        if self.norm is None:
            return self.reads[0].effective_scale().double() * self._weight_scale(weight).reshape(-1)
        factor = self.normalization().factor()
        scale = self._weight_scale(weight).double().reshape(-1)
        if numerics.folds_free(self.weight.scheme):
            scale = scale * factor.abs()
        return self.reads[0].effective_scale().double() * torch.clamp(scale, min=numerics.MIN_SCALE)

    def _rounded(self, bias: Tensor, weight: Tensor) -> Tensor:
        """`bias` rounded to the grid that the integer layer has for it, straight through."""
        if not self._ready():
            return bias
        if (rounded := self._compiled_bias(bias, weight)) is not None:
            return rounded
        with torch.no_grad():
            unit = self._bias_scale(weight)
            error = _once((torch.round(bias.double() / unit) * unit - bias.double()).to(bias.dtype))
        return bias + error

    def shifted_bias(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The bias of this layer's BatchNorm and what rounding the folded bias adds to it; None before ranges are set."""
        if not self._ready() or not self.clock.enabled:
            return None
        norm: Any = self.norm
        if (dtype == torch.float32 or norm.bias is not None) and (shifted := self._compiled_bias(bias, weight)) is not None:
            return shifted
        with torch.no_grad():
            folded = numerics.folded_bias(bias, self.normalization(), weight.shape[0], weight)
            unit = self._bias_scale(weight)
            shift = _once((torch.round(folded / unit) * unit - folded).float())
        return shift.to(dtype) if norm.bias is None else norm.bias + shift.to(norm.bias.dtype)

    def _compiled_bias(self, bias: Tensor | None, weight: Tensor) -> Tensor | None:
        """The rounded bias, or the shifted one of the BatchNorm, by a compiled kernel; None where there is none."""
        if torch.compiler.is_compiling() or (kernel := kernels.compiled()) is None:
            return None
        assert self.weight is not None
        assert self.reads[0] is not None
        scale, norm = self._weight_scale(weight).detach(), cast(Any, self.norm)
        reads = self.reads[0].effective_scale().detach()
        if norm is None:
            found = kernel.rounded_bias(bias, None, None, None, None, 0.0, reads, scale, False)
        else:
            free = numerics.folds_free(self.weight.scheme)
            statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
            found = kernel.rounded_bias(bias, *statistics, reads, scale, free)
        return None if found is NotImplemented else found


def _once(channels: Tensor) -> Tensor:
    """Compiled, what has an element a channel is computed once: Inductor would do so again for every element that reads it."""
    return channels.as_strided(channels.shape, channels.stride()) if torch.compiler.is_compiling() else channels


def _straight_through(exact: Tensor, differentiable: Tensor) -> Tensor:
    """The value of `exact` with the gradient of `differentiable`: what is added is 0 where it is finite."""
    zero = differentiable - differentiable.detach()
    return exact + torch.where(torch.isfinite(differentiable.detach()), zero, 0.0).float()
