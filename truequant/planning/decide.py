"""`plan`: a pure function from a model, example inputs and a config to a `Plan`."""

from __future__ import annotations

from typing import Any

from torch import nn

from truequant.errors import PlanError, SchemeError, StateError
from truequant.planning.actions import FLOAT, GRIDLESS, MOVES, OF_SCORES, Bias
from truequant.planning.affine import of_channels
from truequant.planning.align import calls_in_training, calls_skipped, skipped, with_skipped
from truequant.planning.assign import activation_schemes, ends, leave_in_float, weight_scheme
from truequant.planning.attention import adds_bias
from truequant.planning.calls import Dynamic, as_arguments, as_example, call_of, checked_axes
from truequant.planning.capture import Call, Constant, Trace, trace
from truequant.planning.counts import most_calls, rows_of_counts
from truequant.planning.decomposed import FAST_PATHS
from truequant.planning.fitting import check_plain
from truequant.planning.float_linears import check_uses
from truequant.planning.float_weights import is_recurrent, reason_of, tied_layer, weights_in_float
from truequant.planning.fusion import fuse
from truequant.planning.graph import Graph, Node
from truequant.planning.held import Held, held
from truequant.planning.leaves import is_leaf
from truequant.planning.norm_parts import norms_of_grids, release_parts, take_parts
from truequant.planning.notes import notes, wide_sums
from truequant.planning.ops import LINEAR_OPS
from truequant.planning.outputs import tensors_of
from truequant.planning.overrides import Overrides
from truequant.planning.pass_ends import pass_ends
from truequant.planning.plan import Plan
from truequant.planning.pointwise import leave_bare, leave_floats, take_leading
from truequant.planning.records import Kind, OwnerPlan, QuantizerPlan, Site, TensorSpec
from truequant.planning.saturation import narrowed
from truequant.planning.scores import broken_attentions, scores_grids, scores_scheme, table_bits
from truequant.planning.selectors import Selectable, matching
from truequant.planning.streams import streams
from truequant.planning.without_grid import without_grid
from truequant.schemes import INHERIT, PerChannel, PerGroup, QConfig, QuantScheme, is_dynamic


def plan(model: nn.Module, example_inputs: Any, config: QConfig | str | None = None, *, dynamic: Dynamic | None = None) -> Plan:
    """Decide how `model` is quantized. The model is run twice, in training and in evaluation mode, and left as it was.

    example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs; axis 0 is the batch.
    config: a `QConfig`, the name of a preset, or None for "int8".
    dynamic: axes that the converted model takes in any size, beside the batch: `{0: (2, 3)}` for images, `{"ids": (1,)}`.

    Raises `PlanError` for a rule that matches nothing or consumers that disagree, `SchemeError` for a scheme that the
    target cannot hold.
    """
    config = QConfig.preset(config) if isinstance(config, str) else (config or QConfig())
    check_plain(model, "plan")
    modules, example_inputs = dict(model.named_modules()), as_example(model, example_inputs)
    if any(hasattr(type(m), "__truequant__") for m in modules.values()):
        raise StateError("the model is prepared already", fix="plan the float model, or tq.restore_float(model) first")
    evaluated, trained = (trace(model, example_inputs, training=t, unroll=config.unroll_recurrent) for t in (False, True))
    any_size = any(axis > 0 for axes in (dynamic or {}).values() for axis in axes)
    without: frozenset[int] = frozenset()
    while True:  # what cannot be computed whole on codes stays float as a whole: the plan is then that of a model without it
        graph = Graph(evaluated, modules, trained, any_size=any_size, without=without)
        take_parts(graph)
        norms_of_grids(graph)
        builder = _decided(graph, trained, config, example_inputs, dynamic)
        broken = broken_attentions(graph, builder.schemes)
        if not broken - without:
            return builder.plan()
        without |= broken


def _decided(graph: Graph, trained: Trace, config: QConfig, example_inputs: Any, dynamic: Dynamic | None) -> _Builder:
    """Actions and schemes of every node."""
    modules = graph.modules
    active = [n for n in graph.nodes if n.action != "identity"]
    selectable = [Selectable(n.name, graph.places(n), modules[n.call.owner], n.call.op.name) for n in active]
    rules = matching(config.rules, selectable)
    check_uses(graph, list(zip(active, rules, strict=True)), config)
    overrides = {n.index: Overrides.of(r) for n, r in zip(active, rules, strict=True)}
    overrides |= {n.index: Overrides() for n in graph.nodes if n.action == "identity"}
    leave_in_float(graph, overrides, config)
    release_parts(graph)
    take_leading(graph, overrides)
    fuse(graph)
    return _Builder(graph, trained, overrides, config, example_inputs, checked_axes(dynamic, example_inputs))


class _Builder:
    def __init__(
        self,
        graph: Graph,
        trained: Trace,
        overrides: dict[int, Overrides],
        config: QConfig,
        example_inputs: Any,
        dynamic: Dynamic,
    ) -> None:
        self.graph, self.trained, self.overrides, self.config = graph, trained, overrides, config
        self.example_inputs, self.dynamic = example_inputs, dynamic
        self.first, self.last = ends(graph)
        schemes = activation_schemes(graph, overrides, config, self.last)
        leave_bare(graph, overrides, schemes)
        self.tokens = {grid: scheme for grid, scheme in schemes.items() if is_dynamic(scheme)}
        """Of grids that are none: how linear layers quantize what they read from there."""
        self.schemes = {grid: None if grid in self.tokens else scheme for grid, scheme in schemes.items()}
        without_grid(graph, self.schemes, self.tokens)
        leave_floats(graph, self.schemes)
        self.streams, self.narrow_streams = streams(graph, overrides, config, self.schemes)
        self.quantizers: dict[str, QuantizerPlan] = {}
        self.narrow: set[str] = set()
        """Quantizers of weights that were narrowed."""
        self.held: dict[Any, Held] = {}
        """What files hold of float calls that were looked at already."""
        self.grid_quantizer: dict[int, str] = {}
        self.parts: dict[int, int] = {}

    # -- quantizers ----------------------------------------------------------------------------------------------------
    def _quantizer(
        self,
        owner: str,
        slot: str,
        kind: Kind,
        scheme: QuantScheme,
        channels: int | tuple[int, ...] | None = None,
        tied: bool = False,
        stream: int | None = None,
    ) -> str:
        name = f"{owner}.{slot}" if owner else slot
        self.quantizers.setdefault(name, QuantizerPlan(name, owner, slot, kind, scheme, channels, tied, stream))
        return name

    def _slot(self, node: Node) -> str:
        slot = "output" if node.leaf else f"{node.call.op.name}_{node.call.ordinal}"
        return slot + "".join(f"_call{k}" for k in node.frame)

    def _place(self) -> tuple[dict[int, str], dict[int, str]]:
        """Quantizers at the producers of each grid: by index of the node, and by position of the model's input."""
        graph, at_node, at_input = self.graph, {}, {}
        outputs, scores = {graph.grid(v) for v in graph.outputs}, scores_grids(graph)
        for position, value in enumerate(graph.trace.inputs):
            grid = graph.grid(graph.resolve(value))
            if self.schemes.get(grid) is not None and graph.is_float(value):
                at_input[position] = self._of_grid(grid, "", f"input_{position}", "input")
        for node in graph.nodes:
            last = node.fused[-1] if node.fused else node
            if node.fused_into is not None or node.action == "identity" or not node.writes:
                continue
            for value in [node.end] if node.integer else node.writes if node.action in FLOAT else []:
                grid = graph.grid(value)
                if self.schemes.get(grid) is None:
                    continue
                if len(last.writes) > 1 and last.index in at_node:
                    raise PlanError(
                        f"'{node.name}' returns several tensors that integer ops read",
                        fix=f'Rule("{node.name}", None) and its readers too',
                    )
                if len(last.writes) > 1:
                    self.parts[last.index] = last.writes.index(value)
                kind: Kind = "scores" if grid in scores else "output" if grid in outputs else "activation"
                at_node[last.index] = self._of_grid(grid, last.call.owner, self._slot(last), kind)
        for node in graph.nodes:
            for place in self._constants(node):
                self._of_grid(graph.grid(node.reads[place]), node.call.owner, f"{self._slot(node)}_constant", "constant")
        return at_node, at_input

    def _of_grid(self, grid: int, owner: str, slot: str, kind: Kind) -> str:
        if grid not in self.grid_quantizer:
            scheme = self.schemes[grid]
            assert scheme is not None
            self.grid_quantizer[grid] = self._quantizer(owner, slot, kind, scheme, stream=self.streams.get(grid))
        return self.grid_quantizer[grid]

    def _weight(self, node: Node) -> str:
        position = 2 if node.call.op.name == "addmm" else 1
        reference = node.call.args[position] if len(node.call.args) > position else node.call.kwargs.get("weight")
        if not isinstance(reference, Constant):
            raise PlanError(f"'{node.name}': its weight is not a tensor", got=repr(reference))
        output = self.graph.shape(node.writes[0])
        channels = output[-1] if node.call.op.name in LINEAR_OPS else output[1]
        rank = 2 if node.call.op.name in LINEAR_OPS else len(output)
        features = self.graph.shape(node.reads[0])[-1] if node.action in GRIDLESS else None
        at_an_end = node.index in self.first | self.last
        scheme = weight_scheme(node, self.overrides[node.index], self.config, at_an_end, rank, features)
        given, scheme = scheme, self._narrowed(node, scheme)
        if scheme.oscillation is not None and not node.leaf:
            raise SchemeError(
                f"'{node.name}': freezing keeps a state of the shape of the weight, and this one is passed to a function",
                got=str(scheme), fix=f'Rule("{node.name}", weight=…) without oscillation=, or a module for the layer',
            )  # fmt: skip
        slot = "weight" if node.leaf else f"{node.call.op.name}_{node.call.ordinal}_weight"
        folds = node.norm is not None or node.affine is not None
        tied = folds and (scheme.power_of_two or scheme.granularity.__class__.__name__ == "PerTensor")
        scales: int | tuple[int, ...] | None = channels if isinstance(scheme.granularity, PerChannel) else None
        if isinstance(scheme.granularity, PerGroup) and features is not None:
            scales = (channels, features // scheme.granularity.size)
        name = self._quantizer(node.call.owner, slot, "weight", scheme, scales, tied)
        if scheme != given and self.quantizers[name].scheme == scheme:
            self.narrow.add(name)
        return name

    def _narrowed(self, node: Node, scheme: QuantScheme) -> QuantScheme:
        """What a rule says stays as it is."""
        if self.overrides[node.index].weight is not INHERIT:
            return scheme
        grid = self.graph.grid(node.reads[0])
        return narrowed(node, self.graph, scheme, self.tokens.get(grid) or self.schemes.get(grid), self.config)

    def _float_weights(self, node: Node) -> tuple[tuple[str, str], ...]:
        """Quantizers of the weights of a recurrent layer, or of the table of an embedding."""
        module = self.graph.modules[node.call.owner]
        layer, found = tied_layer(node, self.graph), []
        for name in weights_in_float(node, self.graph, self.overrides, self.config):
            parameter = getattr(module, name)
            if layer is not None and self._shares(node, layer):
                found.append((name, self._weight(layer)))
                continue
            features = None if is_recurrent(node) else parameter.shape[1]
            scheme = weight_scheme(node, self.overrides[node.index], self.config, False, 2, features)
            rows, granularity = parameter.shape[0], scheme.granularity
            scales: int | tuple[int, ...] | None = rows if isinstance(granularity, PerChannel) else None
            if isinstance(granularity, PerGroup) and features is not None:
                scales = rows, features // granularity.size
            found.append((name, self._quantizer(node.call.owner, name, "weight", scheme, scales)))
        return tuple(found)

    def _shares(self, node: Node, layer: Node) -> bool:
        """Whether a table has the codes of the linear layer that holds it too: unless rules give it a scheme of its own."""
        said = self.overrides[node.index].weight
        return not isinstance(said, QuantScheme) or said == self.quantizers[self._weight(layer)].scheme

    # -- the plan ------------------------------------------------------------------------------------------------------
    def plan(self) -> Plan:
        at_node, at_input = self._place()
        trained = calls_in_training(self.graph, self.trained)
        self.pass_ends = pass_ends(self.graph, self.trained, trained, at_node, self.config.fusions)
        trained |= calls_skipped(self.graph, skipped(self.graph.trace, self.trained))
        self.trained = with_skipped(self.graph.trace, self.trained)
        sites = tuple(self._site(n, at_node, trained.get(n.index)) for n in self.graph.nodes)
        return Plan(
            self.config,
            sites,
            tuple(self.quantizers.values()),
            self._inputs(at_input),
            self._owners(),
            self._uncalled(),
            notes(
                self.graph,
                self.trained,
                self.overrides,
                self.config,
                wide_sums(sites, self.quantizers),
                self._uncalled(),
                len(self.narrow),
            )
            + self.narrow_streams,
            call=call_of(self.graph.modules[""], self.example_inputs),
        )

    def _site(self, node: Node, at_node: dict[int, str], trained: Call | None) -> Site:
        graph = self.graph
        integer_reads = node.integer or node.action in (*MOVES, "norm")
        reads = (
            tuple(self.grid_quantizer.get(graph.grid(v)) for v in node.reads) if integer_reads or node.action in FLOAT else ()
        )
        if node.action in FLOAT:
            reads = tuple(r for r, v in zip(reads, node.reads, strict=True) if v not in graph.constants)
        said = self.overrides[node.index]
        emits = self.grid_quantizer.get(graph.grid(node.end)) if node.integer else None
        if node.action in MOVES and node.fused_into is None:
            emits = self.grid_quantizer.get(graph.grid(node.writes[0]))
        reason = node.reason
        weights = self._float_weights(node)
        if weights:
            reason = reason_of(node, weights)
        if node.fused_into is not None:
            reason = f"computed with {node.fused_into.name}"
        elif (
            node.index in self.first | self.last
            and (node.action == "layer" or node.action in GRIDLESS)
            and self.config.ends is not None
            and said.weight is INHERIT
        ):
            reason += ", at an end of the model"
        there = held(node.call, graph.trace, self.held) if node.action == "float" else Held()
        weight = self._weight(node) if node.action == "layer" or node.action in GRIDLESS else None
        if weight in self.narrow:
            reason += ", weight narrowed"
        return Site(
            name=node.name, owner=node.call.owner, op=node.call.op.name, ordinal=node.call.ordinal, frame=node.frame,
            leaf=node.leaf, action=node.action, reason=reason, train_ordinal=trained.ordinal if trained else None, reads=reads,
            weight=weight, emits=emits,
            quantizer=at_node.get(node.index),
            fused=tuple(link.name for link in node.fused), norm=node.norm.name if node.norm else None,
            fused_into=node.fused_into.name if node.fused_into else None, minimum=node.bounds[0], maximum=node.bounds[1],
            writes_back=any(v in graph.trace.stale for v in node.writes), rule=said.rule,
            part=self.parts.get(node.index), weights=weights, quantized_at=self.pass_ends.get(node.index),
            dynamic=self.tokens[graph.grid(node.reads[0])] if node.action == "dynamic" else None,
            rank=node.call.rank, train_rank=trained.rank if trained else None,
            affine=node.affine, operand=_operand(node, graph), norm_rule=node.norm_rule if node.action == "normalize" else None,
            refused=there.refused, without_onnx=there.without_onnx, factor=node.factor if node.factor != 1.0 else None,
            scores=self._scores(node), bits=table_bits(node, graph), constants=self._constants(node), bias=self._bias(node),
        )  # fmt: skip

    def _constants(self, node: Node) -> tuple[int, ...]:
        """Places of the constants that a node reads on a grid."""
        graph = self.graph
        reads = enumerate(node.reads if node.integer or node.action in MOVES else ())
        return tuple(i for i, v in reads if v in graph.constants and self.schemes.get(graph.grid(v)) is not None)

    def _bias(self, node: Node) -> Bias | None:
        if node.action == "attention":
            return adds_bias(node.call, self.graph)
        return node.part.bias if node.action == "biased" and node.part is not None else None

    def _scores(self, node: Node) -> str | None:
        """The quantizer of the scores inside attention that is one call."""
        if node.action != "attention":
            return None
        scheme = scores_scheme(self.config.activation, self.config.target)
        assert scheme is not None  # broken_attentions has seen to it
        return self._quantizer(node.call.owner, f"{self._slot(node)}_scores", "scores", scheme)

    def _inputs(self, at_input: dict[int, str]) -> tuple[TensorSpec, ...]:
        args, kwargs = as_arguments(self.example_inputs)
        specs: list[TensorSpec] = []
        position = 0
        arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for where, argument in arguments:
            for leaf in tensors_of(argument):
                any_size = {0, *self.dynamic.get(where, ())}
                shape = tuple(None if axis in any_size else n for axis, n in enumerate(leaf.shape))
                dtype = str(leaf.dtype).removeprefix("torch.")
                quantizer = at_input.get(position)
                specs.append(TensorSpec(where, f"input_{position}", dtype, shape, quantizer, tuple(leaf.shape)))
                position += 1
        return tuple(specs)

    def _owners(self) -> tuple[OwnerPlan, ...]:
        """Modules that own a site, and those between them and the root that count the calls of a module called repeatedly."""
        graph = self.graph
        counts = most_calls(graph.trace.op_counts), most_calls(self.trained.op_counts)
        ranks = most_calls(graph.trace.op_ranks), most_calls(self.trained.op_ranks)
        watched = self._counted_owners()
        owners = {n.call.owner for n in graph.nodes} | watched | {""}
        owners |= {name for name, m in graph.modules.items() if isinstance(m, FAST_PATHS)}
        repeats = graph.repeats
        for name in repeats.multiple:
            # a shared module may be called by another module than the one it is named after
            owners |= {name, *_ancestors(name), *repeats.callers[name]}
        keys = repeats.keys(graph.trace), repeats.keys(self.trained)
        return tuple(
            OwnerPlan(
                owner,
                owner in graph.leaves,
                owner in repeats.multiple,
                () if owner in graph.leaves else rows_of_counts(owner, *counts),
                rows_of_counts(owner, *ranks) if owner in watched else None,
                tuple(callers.items()) if len(callers := repeats.callers.get(owner, {})) > 1 else (),
                (keys[0].get(owner, ()), keys[1].get(owner, ())) if any(k.get(owner, ((),)) != ((),) for k in keys) else None,
            )
            for owner in sorted(owners)
        )

    def _counted_owners(self) -> set[str]:
        """Modules in whose own forward each call is looked at.

        Those that call an op; those of a user's own class, and those that no example calls, where any call is one too many.
        """
        graph = self.graph
        counted = {owner for owner, _ in (*graph.trace.op_counts, *self.trained.op_counts)}
        own = {n for n, m in graph.modules.items() if type(m).__module__.split(".")[0] != "torch" or isinstance(m, FAST_PATHS)}
        return (counted | own | {*self._uncalled(with_parameters=False)}) - graph.leaves

    def _uncalled(self, *, with_parameters: bool = True) -> tuple[str, ...]:
        """Leaves that no example calls, which have parameters of their own, or have none."""
        called = set(self.graph.trace.module_calls) | set(self.trained.module_calls)
        leaves = [(n, m) for n, m in self.graph.modules.items() if n not in called and is_leaf(m)]
        return tuple(n for n, m in leaves if any(True for _ in m.parameters(recurse=False)) is with_parameters)


def _operand(node: Node, graph: Graph) -> int | None:
    if node.action == "normalize":
        return node.operand
    if node.part is not None and node.action in (*OF_SCORES, "biased"):
        return node.part.operand
    found = of_channels(node.call, graph.shape(node.reads[0])) if node.action in ("norm", "affine") else None
    return found.operand if found is not None else None


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts))]
