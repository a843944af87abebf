"""`search`: how many bits each layer gets under a budget."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from truequant.analysis.allocation import Choice, allocate
from truequant.analysis.budgets import Budget, LayerFacts
from truequant.analysis.sensitivity import Measurement, Metric
from truequant.calibration import calibrate
from truequant.errors import ArgumentError, FileError
from truequant.fake import quantizers
from truequant.files import atomic_write, dumps, loads
from truequant.planning import LINEAR_OPS, Plan, items_of, plan
from truequant.planning.actions import MOVES
from truequant.planning.capture import Constant, trace
from truequant.planning.graph import Graph
from truequant.schemes import IntegerType, QConfig, Rule, int2, int4, int7, int8, uint8
from truequant.transform import prepare

LARGEST_FILE = 16 << 20


def search(
    model: nn.Module,
    example_inputs: Any,
    batches: Iterable[Any],
    budget: Budget,
    metric: Metric | None = None,
    *,
    config: QConfig | str | None = None,
    weights: Sequence[IntegerType] = (int2, int4, int8),
    activations: Sequence[IntegerType] = (uint8,),
    path: str | os.PathLike[str] | None = None,
    inputs: Callable[[Any], Any] | None = None,
) -> QConfig:
    """A config that gives each layer's weight, and each activation between layers, one of the widths, within the budget.

    The loss of every tensor at every width is measured alone (`sensitivity`), on a model calibrated at that width; what they
    add to the float model's loss is taken as additive, and the assignment is the best that greedy steps along the Pareto
    front and exchanges find. Layers that a rule of `config` leaves in float stay so. Equal arguments give equal configs.

    model: the float model, which stays as it is. example_inputs, batches, inputs: as for `prepare` and `calibrate`.
    budget: `Size(bytes)`, `MultiplyAccumulates(count)`, `Latency(seconds, …)`.
    metric: `metric(outputs, item)`, a loss; left out, the relative squared difference from the float outputs.
    config: what everything else comes from; its own widths of weights and inner activations are replaced.
    weights, activations: the widths to choose from, 2 to 8 bits, of activations 16 too (graded, never EXACT: their sums are
        float32 in onnxruntime). All of them are planned before anything is measured.
    path: a JSON file of finished evaluations. A search that was interrupted goes on from it, another's is refused.
    Raises `ArgumentError` for a budget that the narrowest widths exceed and for widths that no kernel has, `SchemeError` for
    those that the target or a site cannot hold, `FileError` for a file of another search.

    >>> import torch, truequant as tq
    >>> net, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 16)
    >>> found = search(net, x, [x], tq.methods.Size(400))  # 640 weights: 640 bytes at 8 bits, 320 at 4
    >>> qat = tq.prepare(net, x, found)
    """
    base = QConfig.preset(config) if isinstance(config, str) else (config or QConfig())
    items = list(items_of(batches, "search"))
    space = Space(model, example_inputs, base, tuple(weights), tuple(activations))
    known = Evaluations(path, digest(model, items, space, metric))
    losses = space.measured(items, metric, inputs, known)
    choices = [Choice(name, tuple(losses[name, width] for width in space.widths(name))) for name in space.names]

    def cost(picked: Mapping[str, int]) -> float:
        return space.cost(budget, picked)

    picked = allocate(choices, cost, budget.limit)
    if picked is None:
        narrowest = cost(dict.fromkeys(space.names, 0))
        raise ArgumentError(
            f"search: {type(budget).__name__}({budget.limit:g}) cannot be met",
            got=f"{narrowest:g} with the narrowest widths", expected=f"at most {budget.limit:g}",
        )  # fmt: skip
    return space.config(picked)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer, and the activation quantizer that it reads where that one may change its width."""

    facts: LayerFacts
    weight: str
    reads: str | None
    read_bits: int


class Space:
    """What may be chosen. Names are those of quantizers: all weights, then the activations between layers."""

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        base: QConfig,
        weights: tuple[IntegerType, ...],
        activations: tuple[IntegerType, ...],
    ) -> None:
        if not weights or not activations:
            raise ArgumentError("search: no widths to choose from", expected="weights=(int2, int4, int8), activations=(uint8,)")
        wide = [t for t in weights if t.bits > 8]
        if wide:
            raise ArgumentError(
                "search: weights of more than 8 bits have no integer kernel", got=", ".join(map(str, wide)),
                expected="int2 … int8", fix='activations=(uint8, uint16), or a Rule(…, None) that leaves the layer in float',
            )  # fmt: skip
        self.model, self.example, self.base = model, example, base
        self.weights = tuple(sorted(set(weights), key=lambda t: t.bits))
        self.activations = tuple(sorted(set(activations), key=lambda t: t.bits))
        self.plan: Plan = plan(model, example, base)
        inner = {q.name for q in self.plan.quantizers if q.kind == "activation"}
        self.sites = {s.weight: s for s in self.plan.sites if s.weight is not None}
        self.writers = {s.emits: s for s in reversed(self.plan.sites) if s.emits in inner and s.action not in MOVES}
        facts = _facts(model, example)
        kinds = {q.name: q for q in self.plan.quantizers}
        self.layers = [
            _Layer(
                facts[site.name],
                weight,
                read if read in self.writers else None,
                kinds[read].scheme.dtype.bits if read else 32 if site.dynamic is None else site.dynamic.dtype.bits,
            )
            for weight, site in self.sites.items()
            for read in site.reads[:1]
        ]
        self.names = [*self.sites, *(self.writers if len(self.activations) > 1 else ())]
        for picked in self.steps():  # what cannot be had is said before anything is measured
            plan(model, example, self.config(picked))

    def widths(self, name: str) -> tuple[IntegerType, ...]:
        """The types that a quantizer may have, the narrowest first. A weight that the plan narrows has 7 bits in place of 8."""
        if name not in self.sites:
            return self.activations
        narrowed = self.base.saturation == "narrow" and self.plan.quantizer(name).scheme.dtype == int7
        return tuple(int7 if narrowed and t == int8 else t for t in self.weights)

    def steps(self) -> list[dict[str, int]]:
        """Choices in which every type of every tensor occurs: all the narrowest, all the next, up to the widest."""
        count = max(len(self.weights), len(self.activations))
        return [{name: min(step, len(self.widths(name)) - 1) for name in self.names} for step in range(count)]

    def config(self, picked: Mapping[str, int]) -> QConfig:
        """The config of a choice."""
        rules = []
        for name, index in picked.items():
            dtype = self.widths(name)[index]
            scheme = next(q.scheme for q in self.plan.quantizers if q.name == name)
            if name in self.sites:
                rules.append(Rule(self.sites[name].name, weight=replace(scheme, dtype=dtype)))
            else:
                symmetric = None if self.base.activation is None else self.base.activation.symmetric
                rules.append(Rule(self.writers[name].name, output=replace(scheme, dtype=dtype, symmetric=symmetric)))
        return self.base.with_rules(*rules)

    def cost(self, budget: Budget, picked: Mapping[str, int]) -> float:
        """What a choice takes of the budget."""
        total = 0.0
        for layer in self.layers:
            bits = self.weights[picked[layer.weight]].bits
            free = layer.reads is not None and layer.reads in picked
            read = self.activations[picked[layer.reads]].bits if free and layer.reads is not None else layer.read_bits
            total += budget.cost(layer.facts, bits, read)
        return total

    def measured(
        self, items: Sequence[Any], metric: Metric | None, inputs: Callable[[Any], Any] | None, known: Evaluations
    ) -> dict[tuple[str, IntegerType], float]:
        """What each tensor at each width adds to the loss of the float model, when it alone is quantized."""
        found: dict[tuple[str, IntegerType], float] = {}
        for picked in self.steps():
            wanted = {name: self.widths(name)[index] for name, index in picked.items()}
            keys = {name: f"{name} {dtype.name}" for name, dtype in wanted.items()}
            measurement: Measurement | None = None
            if not known.have([*keys.values(), "float"]):
                qat = prepare(self.model, self.example, self.config(picked))
                measurement = Measurement(calibrate(qat, items, inputs=inputs), items, metric, inputs)
            by_name = dict(quantizers(measurement.model)) if measurement is not None else {}
            floating = known.get("float", lambda m=measurement: m.loss([]))  # type: ignore[misc]
            for name, dtype in wanted.items():
                alone = known.get(keys[name], lambda n=name, m=measurement, q=by_name: m.loss([q[n]]))  # type: ignore[misc]
                found[name, dtype] = alone - floating
        return found


class Evaluations:
    """Losses that were measured, kept in a file as they come."""

    def __init__(self, path: str | os.PathLike[str] | None, identity: str) -> None:
        self.path, self.identity = None if path is None else Path(path), identity
        self.losses: dict[str, float] = {}
        if self.path is not None and self.path.exists():
            self.losses = self._read(self.path)

    def _read(self, path: Path) -> dict[str, float]:
        where = f"'{path}'"
        if path.stat().st_size > LARGEST_FILE:
            raise FileError(f"{where}: too large for the evaluations of a search", expected=f"at most {LARGEST_FILE} bytes")
        try:
            found = loads(path.read_text(encoding="utf-8"), where)
        except UnicodeDecodeError as error:
            raise FileError(f"{where}: not a text", got=str(error)) from error
        losses = found.get("losses") if isinstance(found, dict) else None
        if not isinstance(found, dict) or not isinstance(losses, dict):
            raise FileError(f"{where}: not the evaluations of a search", fix="path=… of a new file")
        if found.get("identity") != self.identity:
            raise FileError(
                f"{where}: the evaluations of another search",
                expected="the same model, batches, config, widths and metric", fix="path=… of a new file",
            )  # fmt: skip
        numbers = {k: v for k, v in losses.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        if len(numbers) != len(losses):
            raise FileError(f"{where}: a loss that is no number", fix="path=… of a new file")
        return {k: float(v) for k, v in numbers.items()}

    def have(self, keys: Iterable[str]) -> bool:
        return all(key in self.losses for key in keys)

    def get(self, key: str, compute: Callable[[], float]) -> float:
        """The loss of a key: known, or computed now and written."""
        if key not in self.losses:
            value = compute()
            if not math.isfinite(value):
                raise ArgumentError(f"search: the loss of '{key}' is not finite", got=repr(value))
            self.losses[key] = value
            if self.path is not None:
                atomic_write(self.path, dumps({"identity": self.identity, "losses": self.losses}).encode())
        return self.losses[key]


def digest(model: nn.Module, items: Sequence[Any], space: Space, metric: Metric | None) -> str:
    """What a search is about: the model's state, the batches, the widths, the config and the metric's name."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode())
        _feed(total, value)
    for leaf in pytree.tree_leaves(list(items)):
        _feed(total, leaf)
    name = (
        ""
        if metric is None
        else f"{getattr(metric, '__module__', '')}.{getattr(metric, '__qualname__', type(metric).__name__)}"
    )
    total.update(repr((space.base, space.weights, space.activations, name)).encode())
    return total.hexdigest()


def _feed(total: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        total.update(f"{data.dtype} {tuple(data.shape)}".encode())
        total.update(data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    else:
        total.update(repr(value).encode())


def _facts(model: nn.Module, example: Any) -> dict[str, LayerFacts]:
    """Weights and multiply-accumulates of each layer, by its site's name."""
    graph = Graph(trace(model, example, training=False, unroll=False), dict(model.named_modules()))
    found = {}
    for node in graph.nodes:
        call = node.call
        arguments = [*call.args, *call.kwargs.values()]
        weight = next((a for a in arguments if isinstance(a, Constant) and len(a.shape) > 1), None)
        if node.action != "layer" or weight is None or not node.writes:
            continue
        read, written = graph.shape(node.reads[0]), graph.shape(node.writes[0])
        transposed = call.op.name.startswith("conv_transpose")
        places = read if transposed else written
        channels = places[-1] if call.op.name in LINEAR_OPS else places[1]
        count = math.prod(places[1:]) * weight.elements // max(1, channels)
        found[node.name] = LayerFacts(node.name, call.op.name, weight.elements, count)
    return found
