"""From the exported graph of an evaluated model to the nodes of an integer program.

The graph is walked once. Each tensor in it is either codes on a grid or a float value, exactly as in evaluation: a layer
emits the codes of the grid at the end of its chain, what is fused into it passes them on, and a quantizer on codes of its
own grid does nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode
from torch.utils import _pytree as pytree

from truequant import numerics
from truequant.errors import ConversionError
from truequant.fake import FakeQuantize, RuntimeSite, site_bounds, written_scale
from truequant.integer import nodes as program_nodes
from truequant.integer.nodes import Edge, Node
from truequant.integer.storage import table_dtype
from truequant.planning import FLOAT
from truequant.transform.stored_weights import StoredWeights

QUANTIZER = ":quantizer"
CASTS = (
    torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype_layout, torch.ops.aten.to.device,
    torch.ops.aten.type_as.default,
)  # fmt: skip
JOINS = (torch.ops.aten.cat.default, torch.ops.aten.stack.default)
_MEASURES = (torch.ops.aten.sym_size.int, operator.add, operator.sub, operator.mul, operator.floordiv)


class Unmovable(Exception):
    """A movement that no node of the program makes, of codes or values: it becomes an island on values."""


@dataclass(frozen=True, slots=True)
class Codes:
    """An edge of the program. factor: by what its values are multiplied before their quantizer. masks, shown: edges that
    hide places of it, and a stored mask.
    """

    name: str
    grid: FakeQuantize
    factor: float | None = None
    masks: tuple[str, ...] = ()
    shown: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Floats:
    """A value of the program."""

    name: str


@dataclass(frozen=True, slots=True)
class Parts:
    """What split, chunk and unbind return: slices, not cut before they are taken. unbind drops the axis."""

    whole: Codes | Floats
    axis: int
    cuts: tuple[tuple[int, int], ...]
    drops_axis: bool


@dataclass(frozen=True, slots=True)
class Several:
    """An island with several results, not computed before one is taken. grid: on which each result lies, if it moved codes."""

    island: program_nodes.Island
    grid: FakeQuantize | None = None


Lowered = Several | Codes | Floats | Parts | Tensor | Sequence[Tensor] | None


@dataclass(frozen=True, slots=True)
class Tables:
    """How to lower: a site by its action, a movement by the function in the graph, and what passes its input on."""

    actions: Mapping[str, Callable[[Lowering, GraphNode, RuntimeSite], Lowered]]
    movements: Mapping[Any, Callable[[Lowering, GraphNode, str, Any], Lowered]]
    on_codes: Mapping[Any, Callable[[Lowering, GraphNode, str, Any], Lowered]]
    passing: frozenset[Any]
    island: Callable[[Lowering, GraphNode, str], Lowered]
    cast: Callable[[Lowering, GraphNode, str], Lowered]


class Lowering:
    """Nodes and edges found so far."""

    def __init__(
        self,
        tables: Tables,
        sites: Mapping[str, RuntimeSite],
        inputs: Mapping[str, FakeQuantize],
        constants: Mapping[str, Tensor],
        miscounted: Set[tuple[str, str]],
    ) -> None:
        self.tables, self.sites, self.inputs, self.constants = tables, sites, inputs, constants
        self.miscounted = miscounted
        self.stored = StoredWeights(sites.values())
        self.nodes: list[Node] = []
        self.edges: dict[str, Edge] = {}
        self.values: dict[GraphNode, Lowered] = {}
        self.weights: dict[GraphNode, Codes] = {}
        """Of a softmax that products with values read: its scores."""
        self.masks: dict[tuple[GraphNode, bool], str] = {}
        """Edges of masks, by what they are made of and whether it hides places."""

    def codes(self, name: str, grid: FakeQuantize, factor: float | None = None) -> Codes:
        """A new edge on `grid`."""
        scale = float(written_scale(grid, factor).detach())
        self.edges[name] = Edge(scale, int(grid.zero_point), grid.scheme.qmin, grid.scheme.qmax)
        return Codes(name, grid, factor)

    def moved(self, name: str, source: Codes | Floats) -> Codes | Floats:
        """A new name for what `source` holds, moved."""
        return self.codes(name, source.grid, source.factor) if isinstance(source, Codes) else Floats(name)

    def emit(self, node: Node) -> None:
        self.nodes.append(node)

    def read_by(self, outputs: Iterable[str]) -> tuple[tuple[Node, ...], dict[str, Edge]]:
        """The nodes and edges of which these outputs are made: not the steps of a function that one node computes."""
        wanted, kept = set(outputs), list[Node]()
        for node in reversed(self.nodes):
            if node.output in wanted:
                kept.append(node)
                wanted |= set(node.reads)
        return tuple(reversed(kept)), {name: edge for name, edge in self.edges.items() if name in wanted}

    def unique(self, name: str) -> str:
        taken = {n.output for n in self.nodes}
        return next(found for found in chain([name], (f"{name}_{i}" for i in count(2))) if found not in taken)

    # -- one node of the graph -----------------------------------------------------------------------------------------
    def lower(self, node: GraphNode) -> None:
        if node.target is torch.ops.truequant.mark.default:
            self.values[node] = self._mark(node)
            return
        site = self.site_of(node)
        self.values[node] = self._op(node, site)

    def site_of(self, node: GraphNode) -> RuntimeSite | None:
        """The site whose mark reads this node."""
        for user in node.users:
            if user.target is torch.ops.truequant.mark.default and not str(user.args[1]).endswith(QUANTIZER):
                marked = self.sites[str(user.args[1])]
                return None if self._may_be_anothers(marked) else marked
            if user.target in CASTS and (site := self.site_of(user)) is not None:
                return site
        return None

    def _may_be_anothers(self, site: RuntimeSite) -> bool:
        """Whether tracing made other calls of this op than evaluation does, so that the site may be another's.

        Harmless for what only moves or passes values on; `ConversionError` for the rest.
        """
        plan = site.plan
        if plan.leaf or (plan.owner, plan.op) not in self.miscounted:
            return plan.action == "identity"
        if plan.quantizer is None and plan.action in ("movement", "identity", "float", "concat", "norm", "within"):
            return True
        raise ConversionError(
            f"'{plan.name}': '{plan.owner or 'the model'}' calls '{plan.op}' another number of times when it is traced",
            expected="the same calls: control flow that does not ask whether it is being traced",
            fix="the prepared model still trains and evaluates as it is",
        )

    def _mark(self, node: GraphNode) -> Lowered:
        source, name = self.values[_node(node.args[0])], str(node.args[1])
        if not name.endswith(QUANTIZER):
            return source
        name = name.removesuffix(QUANTIZER)
        grid = self.inputs[name] if name in self.inputs else self.sites[name].quantizer
        assert grid is not None
        if isinstance(source, Floats):
            plain = name in self.inputs or self.sites[name].plan.action not in FLOAT
            edge = self.codes(self.unique(name if plain else f"{name}.codes"), grid)
            self.emit(program_nodes.Quantize(source.name, edge.name))
            return edge
        if isinstance(source, Codes) and source.grid is not grid:
            return self._requantized(source, name, grid)
        return source

    def _requantized(self, source: Codes, name: str, grid: FakeQuantize) -> Codes:
        """Codes of one grid on another: a table."""
        old, new = source.grid.scheme, grid.scheme
        read, written = ((g.effective_scale(), g.zero_point) for g in (source.grid, grid))
        entries = numerics.table(lambda v: v, read, (old.qmin, old.qmax), written, new.qmin, new.qmax)
        edge = self.codes(self.unique(f"{name}@requantized"), grid)
        self.table(source, edge, entries, "requantize")
        return edge

    def _op(self, node: GraphNode, site: RuntimeSite | None) -> Lowered:
        """What an op of the graph becomes: the first case that fits."""
        sources = [self.values.get(n) for n in node.all_input_nodes]
        # 1. It computes from constants alone, or makes no tensor of the program.
        if self._is_constant(node, sources):
            return self._folded(node)
        if self._is_no_tensor(node, sources):
            return None
        # 2. It passes on what it reads.
        if node.target is torch.ops.aten.copy.default and _node(node.args[1]).meta["val"].shape == node.meta["val"].shape:
            return self.values.get(_node(node.args[1]))  # what an in-place op wrote back
        first = self._first(node, sources)
        if node.target in CASTS and (isinstance(first, Codes) or self._keeps_kind(node)):
            return first  # codes have no float dtype, and all float values are float32
        # 3. It is planned: nodes of its own, or a part of another site's.
        if site is not None:
            if site.plan.action in self.tables.actions and site.exact():
                return self.tables.actions[site.plan.action](self, node, site)
            if site.plan.fused_into is not None and site.plan.action in ("clamp", "norm"):
                return self.values.get(node.all_input_nodes[self.activation(node)])
            if site.plan.action == "within" and site.exact():
                return None  # a step that the norm behind it computes
        if node.target in self.tables.passing:
            return first
        # 4. It takes one of several results.
        if isinstance(first, Several) and node.target is operator.getitem:
            return self._taken(node, site, first)
        # 5. It casts or moves, or is an island.
        # "@": a step that has no site of its own, so that evaluation shows nothing to compare it with
        own = site is not None and not (site.plan.action in FLOAT and isinstance(first, Codes))
        name = self.unique(site.plan.name if site is not None and own else f"@{node.name}")
        if node.target in CASTS:
            return self.tables.cast(self, node, name)
        move = self.tables.movements.get(node.target)
        if move is None and isinstance(first, Codes):
            move = self.tables.on_codes.get(node.target)
        if move is not None and isinstance(first, (Codes, Floats, Parts)):
            return self._moved(move, node, name, first)
        return self.tables.island(self, node, self.unique(site.plan.name) if site is not None else name)

    def _is_no_tensor(self, node: GraphNode, sources: list[Lowered]) -> bool:
        """Whether it is a size or a check that exporting added, or reads neither an input nor the size of one."""
        if node.target is torch.ops.aten.sym_size.int or not node.users:
            return True
        measured = isinstance(node.meta.get("val"), Tensor) and any(n.target in _MEASURES for n in node.all_input_nodes)
        return not measured and not any(isinstance(s, (Codes, Floats, Parts, Several)) for s in sources)

    def _first(self, node: GraphNode, sources: list[Lowered]) -> Lowered:
        """What an op moves or passes on: its first input; of joined ones the first with codes, or that is no constant."""
        first = self.values.get(_node(node.all_input_nodes[0]))
        if node.target not in JOINS or isinstance(first, Codes):
            return first
        codes = next((s for s in sources if isinstance(s, Codes)), None)
        return codes or (next(s for s in sources if not isinstance(s, Tensor)) if isinstance(first, Tensor) else first)

    def _taken(self, node: GraphNode, site: RuntimeSite | None, several: Several) -> Codes | Floats:
        """One of the results of an island, which is computed for it."""
        part: Any = node.args[1]
        if several.grid is not None:
            island = replace(several.island, output=self.unique(f"@{node.name}.value"), part=part)
            return self._quantized(island, f"@{node.name}", several.grid)
        name = self.unique(site.plan.name if site is not None else f"@{node.name}")
        self.emit(replace(several.island, output=name, part=part))
        return Floats(name)

    def _moved(
        self,
        move: Callable[[Lowering, GraphNode, str, Any], Lowered],
        node: GraphNode,
        name: str,
        source: Codes | Floats | Parts,
    ) -> Lowered:
        """A movement as nodes of the program; where these do not have it, torch's op on values, which are then codes again."""
        before = len(self.nodes), dict(self.edges)
        try:
            return move(self, node, name, source)
        except Unmovable:
            del self.nodes[before[0] :]
            self.edges = before[1]
        if not isinstance(source, Codes):
            return self.tables.island(self, node, name)
        made = self.tables.island(self, node, self.unique(f"{name}@values"))
        if isinstance(made, Several):
            return replace(made, grid=source.grid)
        assert isinstance(made, Floats)
        edge = self.codes(name, source.grid)
        self.emit(program_nodes.Quantize(made.name, edge.name))
        return edge

    def _quantized(self, island: program_nodes.Island, name: str, grid: FakeQuantize) -> Codes:
        """What an island on values of a grid writes, as codes of that grid."""
        self.emit(island)
        edge = self.codes(self.unique(name), grid)
        self.emit(program_nodes.Quantize(island.output, edge.name))
        return edge

    @staticmethod
    def _keeps_kind(node: GraphNode) -> bool:
        before, after = node.all_input_nodes[0].meta["val"].dtype, node.meta["val"].dtype
        return bool(before == after or (before.is_floating_point and after.is_floating_point))

    def _is_constant(self, node: GraphNode, sources: list[Lowered]) -> bool:
        """Whether a node computes from parameters, buffers and numbers alone."""
        computes = isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem
        known = all(isinstance(s, (Tensor, list, tuple)) for s in sources)
        return computes and known and isinstance(node.meta.get("val"), (Tensor, list, tuple)) and bool(node.users)

    def _folded(self, node: GraphNode) -> Lowered:
        """A tensor computed from parameters and buffers alone: weight normalization, a part of a stacked weight."""
        target: Any = node.target
        args, kwargs = pytree.tree_map(
            lambda a: self.values[a] if isinstance(a, GraphNode) else a, (node.args, dict(node.kwargs))
        )
        with torch.no_grad():
            result: Lowered = target(*args, **kwargs)
        return result

    def floats(self, source: Lowered) -> Floats:
        """A value: codes are dequantized once."""
        if isinstance(source, Floats):
            return source
        assert isinstance(source, Codes)
        name = f"{source.name}.value"
        if not any(n.output == name for n in self.nodes):
            self.emit(program_nodes.Dequantize(source.name, name))
        return Floats(name)

    def table(self, source: Codes, output: Codes | Floats, entries: Tensor, function: str) -> None:
        """Emit a table of all codes of `source`."""
        dtype = table_dtype(self.edges[output.name])
        self.emit(program_nodes.Table(source.name, output.name, entries.to(dtype), function))

    def activation(self, node: GraphNode) -> int:
        """Which of the tensors that an op with constants reads is none."""
        values = [self.values.get(n) for n in node.all_input_nodes]
        return next(i for i, value in enumerate(values) if not isinstance(value, Tensor))

    # -- helpers for actions -------------------------------------------------------------------------------------------
    def input_codes(self, node: GraphNode, site: RuntimeSite, position: int = 0) -> Codes:
        source = self.values[node.all_input_nodes[position]]
        grid = site.reads[position if len(site.reads) > 1 else 0]
        if not isinstance(source, Codes) or grid is None:
            raise ConversionError(
                f"'{site.plan.name}' reads a value that is not quantized", got=type(source).__name__, expected="codes"
            )
        return source if source.grid is grid else self._requantized(source, site.plan.name, grid)

    def result(self, site: RuntimeSite) -> tuple[Codes | Floats, int, int]:
        """The name that a site writes, with the codes between which it is clamped."""
        if site.emits is None:
            return Floats(site.plan.name), 0, 0
        low, high = site_bounds(site, site.emits)
        return self.codes(site.plan.name, site.emits, site.plan.factor), int(low), int(high)


def _node(argument: Any) -> GraphNode:
    assert isinstance(argument, GraphNode)
    return argument


def sizes(value: Any, n: int) -> tuple[int, ...]:
    """One size for each of n spatial axes."""
    if isinstance(value, int):
        return (value,) * n
    values = tuple(int(v) for v in value)
    return values * n if len(values) == 1 else values
