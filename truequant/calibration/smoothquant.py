"""SmoothQuant (Xiao et al. 2022, "Accurate and Efficient Post-Training Quantization for Large Language Models")."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from truequant.calibration.layers import Layer, layers
from truequant.calibration.method import Method, Stage, Work
from truequant.calibration.running import evaluating, float_outputs
from truequant.errors import ArgumentError
from truequant.fake import quantizers, quantizers_off
from truequant.planning import LINEAR_OPS, Plan, Site


@dataclass(frozen=True, slots=True)
class SmoothQuant(Method):
    """Move outliers of the activations behind a norm into the weights of the linear layers that read them.

        s_j = max|X_j|^alpha / max|W_j|^(1 - alpha),  X_j / s_j,  W_j * s_j              (equations 3 and 4)

    for each feature j of a norm (LayerNorm, RMSNorm, or any module with one gain a feature as its own parameter) that only
    linear layers read, the projections of `nn.MultiheadAttention` among them; `1 / s` goes into the norm's gain and bias. The
    float function stays, which is proved by trial as in `CrossLayerEqualization`. Norms that something else reads, such as a
    residual connection, are left alone.
    """

    alpha: float = 0.5
    stage: ClassVar[Stage] = Stage.EQUALIZE

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ArgumentError("SmoothQuant: alpha out of range", got=repr(self.alpha), expected="0 <= alpha <= 1")

    def apply(self, work: Work) -> None:
        groups = smoothable(work)
        reach = _activation_ranges(work, [group.norm for group in groups])
        by_name = dict(quantizers(work.model))
        for group, largest in zip(groups, reach, strict=True):
            group.scale(smoothing(largest, group.weight_ranges(), self.alpha))
            for layer in group.layers:
                layer.read_range_again()
            for name in group.functional:
                by_name[name].reset()  # a function's weight: its range is read at its next call


def smoothing(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """`s`, float64; 1 where one of the two is 0."""
    s = activations.double().pow(alpha) / weights.double().pow(1 - alpha)
    return torch.where((activations > 0) & (weights > 0), s, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A norm and the linear layers that read it. weights: their parameters, `(O, I)`; functional: quantizers of those that
    are calls of functions.
    """

    norm: Any
    weights: tuple[nn.Parameter, ...]
    layers: tuple[Layer, ...]
    functional: tuple[str, ...]

    def weight_ranges(self) -> Tensor:
        """The largest |w| that meets each feature."""
        return torch.stack([w.detach().abs().amax(0) for w in self.weights]).amax(0)

    @torch.no_grad()
    def scale(self, s: Tensor) -> None:
        """Divide the norm's results by `s` and multiply the weights."""
        for parameter in self.norm.parameters(recurse=False):
            parameter.copy_(parameter.double() / s)
        for weight in self.weights:
            weight.copy_(weight.double() * s)


def smoothable(work: Work) -> list[Group]:
    """The norms of a model whose gain can go into all that reads them."""
    plan = work.model.binding.plan
    assert plan is not None
    modules = dict(work.model.named_modules())
    shared = Counter(id(p) for m in modules.values() for p in m.parameters(recurse=False))
    known = {layer.name: layer for layer in layers_of_modules(work)}
    found: list[Group] = []
    baseline = None
    for site in plan.sites:
        norm = modules[site.owner]
        if site.quantizer is None or site.weight is not None or site.frame or not _has_gain(norm, shared):
            continue
        group = _readers(plan, site, norm, modules, known)
        if group is None:
            continue
        baseline = float_outputs(work.model, work.batches[0]) if baseline is None else baseline
        if _proved(work, group, baseline):
            found.append(group)
    return found


def layers_of_modules(work: Work) -> list[Layer]:
    """The linear layers that are modules of their own; what reads a norm in another way is looked up by its owner."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # layers that smoothing does not reach are no failure
        return [one for one in layers(work.model, "SmoothQuant") if one.site.plan.op in LINEAR_OPS]


def _has_gain(module: nn.Module, shared: Counter[int]) -> bool:
    """Whether a module's own parameters are a gain for each feature and, at most, a bias."""
    own = dict(module.named_parameters(recurse=False))
    one_dimensional = all(p.dim() == 1 and shared[id(p)] == 1 for p in own.values())
    return "weight" in own and set(own) <= {"weight", "bias"} and one_dimensional


def _readers(plan: Plan, site: Site, norm: nn.Module, modules: dict[str, nn.Module], known: dict[str, Layer]) -> Group | None:
    """All that reads what the norm writes, where that is linear layers and nothing else."""
    readers = [s for s in plan.sites if site.quantizer in s.reads and s.fused_into is None and s.name != site.name]
    readers = [s for s in readers if s.action not in ("movement", "identity") and s.owner != site.owner]
    if not readers or any(s.action != "layer" or s.op != "linear" for s in readers):
        return None
    weights: list[nn.Parameter] = []
    leaves: list[Layer] = []
    functional: list[str] = []
    for reader in readers:
        owner: Any = modules[reader.owner]
        if reader.leaf and reader.owner in known and known[reader.owner].calls == 1:
            leaves.append(known[reader.owner])
            weights.append(owner.weight)
        elif isinstance(owner, nn.MultiheadAttention) and owner.in_proj_weight is not None and reader.weight is not None:
            functional.append(reader.weight)
            if not any(owner.in_proj_weight is w for w in weights):
                weights.append(owner.in_proj_weight)
        else:
            return None
    if len(functional) % 3 or any(w.shape[1] != len(norm.weight) for w in weights):  # type: ignore[arg-type]
        return None  # of an attention's projections, some read something else
    return Group(norm, tuple(weights), tuple(leaves), tuple(functional))


def _proved(work: Work, group: Group, baseline: Sequence[Tensor]) -> bool:
    """Whether powers of two, moved from the norm into the weights, leave the float model's outputs as they are, bit for bit."""
    features = len(group.norm.weight)
    exponents = torch.randperm(features, generator=torch.Generator().manual_seed(0)) % 25 - 12
    s = torch.pow(2.0, exponents.double()).to(group.norm.weight.device)
    group.scale(s)
    try:
        return all(torch.equal(a, b) for a, b in zip(float_outputs(work.model, work.batches[0]), baseline, strict=True))
    finally:
        group.scale(1 / s)


@torch.no_grad()
def _activation_ranges(work: Work, norms: Sequence[nn.Module]) -> list[Tensor]:
    """The largest |x| of each feature behind each norm, over all batches of the float model."""
    largest: dict[nn.Module, Tensor] = {}

    def look(norm: nn.Module, args: Any, y: Tensor) -> None:
        seen = y.detach().abs().reshape(-1, y.shape[-1]).amax(0)
        largest[norm] = torch.maximum(largest.get(norm, seen), seen)

    handles = [norm.register_forward_hook(look) for norm in norms]
    try:
        with evaluating(work.model), quantizers_off(work.model):
            for args, kwargs in work.batches:
                work.model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return [largest[norm] for norm in norms]
