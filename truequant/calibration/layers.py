"""The layers of a prepared model that post-training methods work on: modules with one weight of their own."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truequant import numerics
from truequant.calibration.simulation import decoded
from truequant.fake import TRANSPOSED, QATModuleWrapper, RuntimeSite, WeightQuantizer, as_layer, layer_weight
from truequant.fake.transposed import module_call
from truequant.planning import LINEAR_OPS


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A module that is a layer. Weights are seen with the output channels first, `(O, I / groups, *kernel)`.

    calls: how often one forward calls it.
    """

    name: str
    module: Any
    site: RuntimeSite
    calls: int = 1

    def twin(self, model: nn.Module) -> Layer:
        """The same layer in a copy of the model."""
        module: Any = model.get_submodule(self.name) if self.name else model
        return Layer(self.name, module, next(iter(module.binding.leaf.values())), self.calls)

    @property
    def quantizer(self) -> WeightQuantizer:
        assert self.site.weight is not None
        return self.site.weight

    @property
    def norm(self) -> Any:
        """The BatchNorm that folds into it, or None."""
        return self.site.norm

    @property
    def groups(self) -> int:
        return int(getattr(self.module, "groups", 1))

    @property
    def channel_axis(self) -> int:
        """The axis of output channels in its result."""
        return -1 if self.site.plan.op in LINEAR_OPS else 1

    def weight(self) -> Tensor:
        """The float weight."""
        return layer_weight(self.site.plan.op, self.module).detach()

    def factor(self) -> Tensor | None:
        """`gamma / sigma` of its BatchNorm, float64 `(O,)`."""
        return self.site.normalization().factor().detach() if self.site.folds else None

    def folded(self) -> Tensor:
        """The weight with its BatchNorm's factor in it, float64."""
        factor, weight = self.factor(), self.weight().double()
        return weight if factor is None else weight * numerics.along_axis(factor, 0, weight.dim())

    def coded(self) -> Tensor:
        """The weight whose codes are taken, float32: the folded one where its scale is tied to the BatchNorm."""
        return (self.folded() if self.quantizer.tied else self.weight()).float()

    def scale(self) -> Tensor:
        """The scale in force, in a shape that broadcasts against `coded()`."""
        weight = self.weight()
        scale = self.quantizer.scale_of(weight, self.factor()).detach()
        return numerics.expand(scale, self.quantizer.scheme.granularity, tuple(weight.shape))

    def codes(self) -> Tensor:
        """Codes of the weight as it stands, float32."""
        return self.quantizer.codes(self.weight(), self.factor())

    @torch.no_grad()
    def write(self, codes: Tensor) -> None:
        """Make the weight the values of `codes` and hold their scale: from now on these are its codes.

        Where a BatchNorm's factor vanishes, no weight has another code than 0, and the weight stays.
        """
        weight, factor = self.weight(), self.factor()
        scale = self.quantizer.scale_of(weight, factor).detach().clone()
        values = codes * numerics.expand(scale, self.quantizer.scheme.granularity, tuple(weight.shape))
        if self.quantizer.tied and factor is not None:
            divisor = numerics.along_axis(factor, 0, weight.dim())
            values = torch.where(divisor.abs() > numerics.MIN_SCALE, values.double() / divisor, weight.double())
        self.set_weight(values)
        self.quantizer.hold(scale)

    @torch.no_grad()
    def set_weight(self, values: Tensor) -> None:
        """Write a float weight that is given with the output channels first."""
        if self.site.plan.op in TRANSPOSED:
            values = as_layer(values, self.groups)
        self.module.weight.copy_(values)

    def read_range_again(self) -> None:
        """Forget a held scale and set the range from the weight as it is now."""
        self.quantizer.release()
        self.quantizer.initialize(self.weight(), self.factor())

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The sums of products of this layer."""
        op = self.site.plan.op
        if op in TRANSPOSED:
            return module_call(op, self.module, (x,), {})(x, weight, bias)
        if op in LINEAR_OPS:
            return F.linear(x, weight, bias)
        result: Tensor = self.module._conv_forward(x, weight, bias)
        return result

    def decoded(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The weight that `codes` stand for, without the BatchNorm's factor: 0 where there is no taking it out."""
        return decoded(self.quantizer, codes, scale, self.factor())

    def finished(self, y: Tensor) -> Tensor:
        """`y`, the sums with their bias, through the BatchNorm and the clamp that are computed with the layer."""
        if self.site.folds:
            y = self.site.normalization().applied(y, self.channel_axis)
        low, high = self.site.plan.minimum, self.site.plan.maximum
        return y if low is None and high is None else torch.clamp(y, low, high)

    def bias(self) -> Tensor | None:
        """Its own bias, float32."""
        bias: Tensor | None = self.module.bias
        return None if bias is None else bias.detach().float()

    def samples(self, inputs: Sequence[Tensor]) -> Tensor:
        """Inputs of the layer as one tensor; a linear layer's as rows, so that sequences may differ in length."""
        linear = self.site.plan.op in LINEAR_OPS
        return torch.cat([x.reshape(-1, x.shape[-1]) if linear else x for x in inputs])

    def by_channel(self, y: Tensor) -> Tensor:
        """A result of the layer, or anything of its shape, as `(O, everything else)`."""
        return y.movedim(self.channel_axis, 0).flatten(1)


def layers(model: QATModuleWrapper, method: str) -> list[Layer]:
    """The layers that `method` can work on, in the order of their calls; a warning names the others and says why."""
    plan = model.binding.plan
    if plan is None:
        return []
    modules = dict(model.named_modules())
    owners = Counter(id(p) for m in modules.values() for p in m.parameters(recurse=False))
    found: dict[str, Layer] = {}
    left: list[tuple[str, str]] = []
    calls = Counter(s.owner for s in plan.sites if s.leaf)
    for site in plan.sites:
        if site.weight is None or site.owner in found:
            continue
        module: Any = modules[site.owner]
        binding = module.binding
        why = _why_not(module, site.leaf, owners)
        if why is None and binding.leaf is not None:
            found[site.owner] = Layer(site.owner, module, next(iter(binding.leaf.values())), calls[site.owner])
        else:
            left.append((site.name, why or "it is a call of a function"))
    warn_left(method, left)
    return list(found.values())


def roundable(model: QATModuleWrapper, method: str) -> list[Layer]:
    """The layers whose weights can be rounded this way or that."""
    found = {layer: _decided(layer.quantizer) for layer in layers(model, method)}
    warn_left(method, [(layer.name, why) for layer, why in found.items() if why is not None])
    return [layer for layer, why in found.items() if why is None]


def _decided(quantizer: WeightQuantizer) -> str | None:
    """Why the codes of a weight are not free."""
    if quantizer.scheme.dtype.bits == 1:
        return "its weight is binary"
    if quantizer.algorithm.codes is not None:
        return f"{type(quantizer.scheme.scale).__name__} decides its codes"
    if quantizer.oscillation is not None and bool(quantizer.oscillation.frozen.any()):
        return "training froze some of its codes"
    return None


def _why_not(module: Any, leaf: bool, owners: Counter[int]) -> str | None:
    if not leaf:
        return "it is a call of a function, not a module"
    if owners[id(module.weight)] > 1:
        return "its weight is another module's too"
    return None


def warn_left(method: str, left: Sequence[tuple[str, str]]) -> None:
    """One warning for all that a method leaves as it is."""
    if left:
        rows = "; ".join(f"'{name}': {why}" for name, why in left)
        warnings.warn(f"{method} leaves {len(left)} as {'it is' if len(left) == 1 else 'they are'}: {rows}", stacklevel=3)
