"""A planned site with the quantizers and modules that the plan names: what all that computes at a site reads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from truequant import kernels, numerics
from truequant.fake.clock import Clock, local
from truequant.fake.folded import Folded
from truequant.fake.marks import mark
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.scores import FakeQuantizeScores
from truequant.fake.transposed import layer_weight
from truequant.fake.weights import WeightQuantizer
from truequant.planning import Affine, Site, rule_of
from truequant.schemes import ArithmeticRule


@dataclass(eq=False)
class PlannedSite:
    """State, and what is asked of it; what happens in a call is in `truequant.fake.sites.RuntimeSite`, which every site is."""

    plan: Site
    clock: Clock
    owner: nn.Module
    reads: tuple[FakeQuantize | None, ...] = ()
    weight: WeightQuantizer | None = None
    emits: FakeQuantize | None = None
    quantizer: FakeQuantize | None = None
    norm: nn.Module | None = None
    """Of a layer: the BatchNorm that folds into it."""
    layer: PlannedSite | None = None
    """Of such a BatchNorm: the layer's site."""
    weights: dict[str, WeightQuantizer] = field(default_factory=dict)
    """Of a float layer: quantizers of its parameters."""
    quantized_at: PlannedSite | None = None
    """Where the quantizer sits that runs in one training pass with this op."""
    named_rule: ArithmeticRule = "onnxruntime"
    """Of the target; see `arithmetic`."""
    tensors: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    """Where the parameters and buffers are that `plan.affine` names: a module and an attribute of it."""
    folded: Folded = field(default_factory=Folded)
    scores: FakeQuantizeScores | None = None
    """Of attention in one call: the quantizer of its scores."""
    masked: bool = False
    """Of a softmax: whether places of its scores may be hidden."""
    called_with: tuple[Tensor, Tensor | None] | None = None
    """Of a layer that is a call of a function, with a BatchNorm behind it: weight and bias of its last call in training."""

    @property
    def arithmetic(self) -> ArithmeticRule:
        """The rule that this site computes by, which follows the widths of what it reads and writes."""
        bits = [q.scheme.dtype.bits for q in (*self.reads, self.emits) if q is not None]
        return rule_of(self.plan.action, bits, self.named_rule)

    def exact(self) -> bool:
        """Whether this site computes on codes now."""
        if not self.clock.enabled or self.clock.calibrating or self.owner.training:
            return False
        return self.norm is None or not self.norm.training

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

    def operands(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of this layer, output channels first: its module's, or those of its last call in training."""
        if self.called_with is not None:
            return self.called_with
        owner: Any = self.owner
        return layer_weight(self.plan.op, owner), owner.bias

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "called_with": None}  # a copy is called anew

    def own_weight(self) -> Tensor | None:
        """The weight of the module that is this layer, output channels first."""
        weight = getattr(self.owner, "weight", None)
        return layer_weight(self.plan.op, self.owner) if isinstance(weight, Tensor) else None

    # -- bias and BatchNorm in training --------------------------------------------------------------------------------
    def normalization(self) -> numerics.Normalization:
        """The map of channels that is computed with this layer, or that this op is: of a BatchNorm with running statistics."""
        affine = self.plan.affine
        if self.norm is None and self.plan.op != "batch_norm" and affine is not None:
            return self._mapped(affine)
        found = self.batch_normalization()
        if affine is None:
            return found
        behind = self._mapped(affine)
        gamma, beta = found.gamma, found.beta
        if behind.gamma is not None:
            gamma = behind.gamma if gamma is None else gamma * behind.gamma
            beta = None if beta is None else beta * behind.gamma
        if behind.beta is not None:
            beta = behind.beta if beta is None else beta + behind.beta
        return replace(found, gamma=gamma, beta=beta)

    def batch_normalization(self) -> numerics.Normalization:
        """The BatchNorm of this layer, or that this op is, with running statistics."""
        norm: Any = self.norm if self.norm is not None else self.owner
        return numerics.Normalization(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)

    def _mapped(self, affine: Affine) -> numerics.Normalization:
        def tensor(name: str) -> Tensor:
            return cast(Tensor, getattr(*self.tensors[name]))

        factor = None if affine.factor is None else affine.factor.compute(tensor)
        bias = None if affine.bias is None else affine.bias.compute(tensor)
        like = cast(Tensor, bias if factor is None else factor).detach()
        return numerics.Normalization(torch.zeros_like(like), torch.ones_like(like), factor, bias, 0.0)

    @property
    def folds(self) -> bool:
        """Whether a map of channels is computed with this layer."""
        return self.norm is not None or self.plan.affine is not None

    @property
    def own_bias(self) -> bool:
        """Whether the bias before `plan.affine` has the program's codes, but for signs: training then rounds it."""
        affine, weight = self.plan.affine, self.weight
        return affine is None or (weight is not None and affine.bias is None and numerics.folds_free(weight.scheme))

    def _ready(self) -> bool:
        return not self.clock.calibrating and self.reads[0] is not None and self.reads[0].is_calibrated

    def _weight_scale(self, weight: Tensor) -> Tensor:
        """The scale with which this layer's weight was quantized in this forward."""
        quantizer = self.weight
        assert quantizer is not None
        if quantizer.training and quantizer.quantizing and quantizer.follows_weight():
            return quantizer.scale  # it has just been read from the weight
        return quantizer.scale_of(weight, self.normalization().factor() if self.folds else None)

    def _bias_scale(self, weight: Tensor) -> Tensor:
        """`sx * sw` of the folded weight, float64, `(C,)` or `(1,)`."""
        assert self.weight is not None
        assert self.reads[0] is not None
        if self.norm is None:
            return self.reads[0].effective_scale().double() * self._weight_scale(weight).reshape(-1)
        factor = self.batch_normalization().factor()
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
        if not self._ready() or not self.clock.enabled or not self.own_bias:
            return None
        norm: Any = self.norm
        if (dtype == torch.float32 or norm.bias is not None) and (shifted := self._compiled_bias(bias, weight)) is not None:
            return shifted
        with torch.no_grad():
            folded = numerics.folded_bias(bias, self.batch_normalization(), weight.shape[0], weight)
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
