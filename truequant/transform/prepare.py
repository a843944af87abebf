"""`prepare` executes a plan: it makes quantizers, binds sites to them, and swaps classes. It decides nothing."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import nn

from truequant.errors import ArgumentTypeError, PlanError, StateError
from truequant.fake import (
    QUANTIZERS,
    Binding,
    Clock,
    FakeQuantize,
    FakeQuantizeScores,
    InputQuantizer,
    Limits,
    Parts,
    QATModuleWrapper,
    Ranked,
    RuntimeSite,
    Stream,
    Untrained,
    WeightQuantizer,
    keep_delta,
    outermost,
    swap,
    unswap,
)
from truequant.planning import (
    FAST_PATHS,
    OwnerPlan,
    Plan,
    Site,
    check_modules,
    check_plain,
    check_plan,
    plan,
    positional_in,
)
from truequant.planning.actions import DIFFERS
from truequant.schemes import QConfig
from truequant.transform.refusals import left_behind


@torch.inference_mode(False)
def prepare(
    model: nn.Module,
    example_inputs: Any,
    config: QConfig | Plan | str | None = None,
    *,
    inplace: bool = False,
    dynamic: Mapping[int | str, Sequence[int]] | None = None,
) -> nn.Module:
    """Make `model` quantization-aware: the same module with quantizers where the plan says.

    `isinstance`, hierarchy, parameters and their names stay; `train()` trains with fake quantization, `eval()` computes the
    codes that the converted model computes.

    example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs; axis 0 is the batch.
    config: a `QConfig`, a preset's name, a `Plan` of this model, edited or not, or None for "int8".
    dynamic: axes that may change in the converted model, beside the batch: `{0: (2, 3)}` for height and width of images.
    inplace: change `model` itself and keep its parameter objects (an optimizer built before still holds them).
    Raises `StateError` for a prepared model, `PlanError` and `SchemeError` as `plan` does. Warns once where an op
    that stays float is one that `convert` or `export_onnx` will refuse.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("prepare: the model is not an nn.Module", got=type(model).__name__, expected="nn.Module")
    check_plain(model, "prepare")
    if any(isinstance(m, QATModuleWrapper) for m in model.modules()):
        raise StateError("the model is prepared already", fix="prepare the float model, or tq.restore_float(model) first")
    if isinstance(config, Plan):
        check_plan(config, "prepare", PlanError)
        check_modules(config, model, "prepare")
    decided = config if isinstance(config, Plan) else plan(model, example_inputs, config, dynamic=dynamic)
    model = model if inplace else copy.deepcopy(model)
    _Preparation(model, decided).run()
    if left := left_behind(decided):
        warnings.warn(left, stacklevel=3)
    return model


def restore_float(model: nn.Module) -> nn.Module:
    """The float model again, in place: trained weights, no quantizers. Also of a part taken out of a prepared model."""
    if not isinstance(model, QATModuleWrapper):
        outermost(model)
    for module in list(model.modules()):
        if isinstance(module, QATModuleWrapper):
            unswap(module)
    return model


class _Preparation:
    def __init__(self, model: nn.Module, decided: Plan) -> None:
        self.model, self.plan = model, decided
        self.modules = dict(model.named_modules())
        self.clock = Clock()
        self.quantizers: dict[str, FakeQuantize | WeightQuantizer] = {}
        self.sites: dict[str, RuntimeSite] = {}
        self.of_owner: dict[str, list[Site]] = {}
        for site in decided.sites:
            self.of_owner.setdefault(site.owner, []).append(site)

    def run(self) -> None:
        bindings = self._bindings()
        for name, binding in bindings.items():
            swap(self.modules[name], binding)
        self._make_quantizers()
        self._make_sites()
        for name, binding in bindings.items():
            self._fill(binding, self.of_owner.get(name, []))
        for site in self.sites.values():
            self._initialize_weight(site)
        root: Any = self.model
        root.binding.outermost, root.binding.plan = True, self.plan
        root.binding.streams = tuple(
            q for q in self.quantizers.values() if isinstance(q, FakeQuantize) and q.stream is not None
        )
        root.binding.inputs = self._inputs()
        root.binding.untrained = Untrained(self.model)
        root.binding.parts = Parts.of(self.model, self.plan)
        root.binding.limits = Limits([q for q in self.quantizers.values() if q.shift is not None])

    # -- modules -------------------------------------------------------------------------------------------------------
    def _bindings(self) -> dict[str, Binding]:
        """One for each owner, each module below an owner that watches its own calls, and each layer never called."""
        planned = {o.name: o for o in self.plan.owners}
        watched = [o.name for o in self.plan.owners if self._counts_calls(o)]
        names = set(planned) | set(self.plan.uncalled) | {""}
        for name in self.modules:
            if any(name.startswith(f"{w}." if w else "") for w in watched):
                names.add(name)
        return {n: self._binding(n, planned.get(n)) for n in self.modules if n in names}

    def _binding(self, name: str, owner: OwnerPlan | None) -> Binding:
        binding = Binding(name, self.clock, unrolls=self.plan.config.unroll_recurrent)
        if owner is not None:
            binding.multiple, binding.callers = owner.multiple, dict(owner.callers)
            if owner.frames is not None:
                evaluated, trained = map(frozenset, owner.frames)
                binding.frames = evaluated, evaluated | trained
            binding.leaf = {} if owner.leaf else None
            binding.counts = {op: (evaluated, trained) for op, evaluated, trained in owner.counts}
            binding.needs_calls = not owner.leaf and self._any_differs(name)
            if owner.calls is not None:
                known = tuple({op: row[i] for op, *row in owner.calls} for i in (0, 1))
                binding.ranked = Ranked(known[0]), Ranked(known[1])
                binding.stray = not owner.calls and name != "" and not isinstance(self.modules[name], FAST_PATHS)
            binding.needs_recorded_calls = self._counts_calls(owner)
            binding.islands = any(s.action == "float" or s.op == "view" for s in self.of_owner.get(name, []))
        elif name in self.plan.uncalled:
            binding.leaf = {}
        return binding

    def _counts_calls(self, owner: OwnerPlan) -> bool:
        """Whether calls of functions in its forward are counted: then those of the modules below it must not be."""
        if owner.calls is not None:
            return True
        return not owner.leaf and (bool(self.of_owner.get(owner.name)) or self._any_differs(owner.name))

    def _any_differs(self, owner: str) -> bool:
        return isinstance(self.modules[owner], FAST_PATHS) or any(map(_differs, self.of_owner.get(owner, [])))

    def _fill(self, binding: Binding, sites: list[Site]) -> None:
        for site in sites:
            runtime = self.sites[site.name]
            if binding.leaf is not None:
                binding.leaf[site.frame] = runtime
                continue
            evaluated: Any = binding.evaluated.setdefault(site.frame, {})
            evaluated[site.op, site.ordinal] = runtime
            if site.train_ordinal is not None:
                trained: Any = binding.trained.setdefault(site.frame, {})
                trained[site.op, site.train_ordinal] = runtime
            for ranked, rank in zip(binding.ranked or (), (site.rank, site.train_rank), strict=False):
                if rank is None:
                    continue
                ranked.sites.setdefault(site.frame, {})[site.op, rank] = runtime
                if _differs(site):
                    needed = ranked.needed.setdefault(site.frame, {})
                    needed[site.op] = max(needed.get(site.op, 0), rank + 1)

    # -- quantizers and sites ------------------------------------------------------------------------------------------
    def _make_quantizers(self) -> None:
        device = next((p.device for p in self.model.parameters()), None)
        for q in self.plan.quantizers:
            quantizer: FakeQuantize | WeightQuantizer
            if q.kind == "weight":
                quantizer = WeightQuantizer(q.scheme, q.channels, tied=q.tied)
            else:
                quantizer = FakeQuantizeScores(q.scheme) if q.kind == "scores" else FakeQuantize(q.scheme, q.channels)
                if q.stream is not None:
                    quantizer.stream = Stream(q.stream, q.chosen)
                    quantizer.mark_width()
                quantizer.owns_clock = False
            quantizer.name, quantizer.clock = q.name, self.clock
            keep_delta(quantizer)
            quantizer.train(self.modules[q.owner].training)
            if device is not None:
                quantizer.to(device)
            owner = self.modules[q.owner]
            if QUANTIZERS not in owner._modules:
                owner.add_module(QUANTIZERS, nn.ModuleDict())
            holder: Any = owner._modules[QUANTIZERS]
            holder[q.slot] = quantizer
            self.quantizers[q.name] = quantizer

    def _activation(self, name: str | None) -> FakeQuantize | None:
        quantizer = self.quantizers[name] if name is not None else None
        assert quantizer is None or isinstance(quantizer, FakeQuantize)
        return quantizer

    def _weight(self, name: str) -> WeightQuantizer:
        quantizer = self.quantizers[name]
        assert isinstance(quantizer, WeightQuantizer)
        return quantizer

    def _make_sites(self) -> None:
        for site in self.plan.sites:
            weight = self._weight(site.weight) if site.weight is not None else None
            if weight is not None:
                weight.sums_codes = self.plan.config.fusions.linear
            self.sites[site.name] = RuntimeSite(
                site, self.clock, self.modules[site.owner], tuple(self._activation(r) for r in site.reads), weight,
                self._activation(site.emits), self._activation(site.quantizer), named_rule=self.plan.target.arithmetic,
                weights={name: self._weight(q) for name, q in site.weights},
            )  # fmt: skip
        hidden = {
            s.emits
            for s in self.plan.sites
            if (s.action == "biased" and s.bias == "hiding") or any(self.sites[n].plan.action == "masked" for n in s.fused)
        }
        for runtime in self.sites.values():
            self._of_scores(runtime, hidden)
            if runtime.plan.norm is not None:
                norm = self.sites[runtime.plan.norm]
                runtime.norm, norm.layer = norm.owner, runtime
            if runtime.plan.action == "norm" and runtime.plan.fused_into is not None:
                runtime.layer = self.sites[runtime.plan.fused_into]
            if runtime.plan.affine is not None:
                runtime.tensors = {name: self._place(name) for name in runtime.plan.affine.names()}
            if runtime.plan.quantized_at is not None:
                runtime.quantized_at = self.sites[runtime.plan.quantized_at]

    def _of_scores(self, site: RuntimeSite, hidden: Set[str | None]) -> None:
        """Tell a softmax, and the quantizer of its scores, whether a mask may hide some of them."""
        plan = site.plan
        if plan.action in ("softmax", "weights"):
            site.masked = plan.reads[0] in hidden
            if isinstance(site.reads[0], FakeQuantizeScores):
                site.reads[0].masked = site.masked
        elif plan.scores is not None:
            scores = self._activation(plan.scores)
            assert isinstance(scores, FakeQuantizeScores)
            site.scores = scores

    def _place(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a parameter or buffer, and its name there."""
        path, _, own = name.rpartition(".")
        return self.model.get_submodule(path), own

    def _initialize_weight(self, site: RuntimeSite) -> None:
        for name, quantizer in site.weights.items():
            parameter: Any = getattr(site.owner, name)
            quantizer.track(tuple(parameter.shape))
            if parameter.device.type != "meta":
                quantizer.initialize(parameter)
        if site.weight is None:
            return
        weight = site.own_weight()
        if site.plan.leaf and weight is not None:
            site.weight.track(tuple(weight.shape))
        if site.weight.is_calibrated:
            return
        if site.plan.leaf and weight is not None and weight.device.type != "meta":
            site.weight.initialize(weight, site.normalization().factor() if site.folds else None)

    def _inputs(self) -> tuple[InputQuantizer, ...]:
        seen: Counter[int | str] = Counter()
        other: dict[int | str, int | str] = {}
        for place, name in enumerate(positional_in(self.plan)):
            other |= {place: name, name: place}
        result = []
        for spec in self.plan.inputs:
            quantizer = self._activation(spec.quantizer)
            if quantizer is not None:
                result.append(InputQuantizer(spec.where, seen[spec.where], spec.name, quantizer, other.get(spec.where)))
            seen[spec.where] += 1
        return tuple(result)


def _differs(site: Site) -> bool:
    """Whether something else happens at a site than in the float model."""
    own = site.action == "clamp" and site.fused_into is None and site.emits is not None
    folded = site.action == "norm" and site.fused_into is not None  # nothing, on codes
    changed = site.quantizer is not None or site.writes_back or bool(site.constants or site.weights)
    return changed or site.action in DIFFERS or own or folded
