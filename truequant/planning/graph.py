"""The evaluated forward as a graph: what each call is, who reads a value, which values share a grid."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from truequant.numerics import NormRule
from truequant.planning.actions import COMPUTES, MOVES, OF_SCORES, Action
from truequant.planning.affine import of_channels
from truequant.planning.attention import Part, attention_arguments, attention_of, attentions
from truequant.planning.capture import Call, Constant, Frame, Ref, Trace
from truequant.planning.elementwise import EACH_NUMBER, is_pointwise
from truequant.planning.flow import Flow
from truequant.planning.formulas import Affine
from truequant.planning.joined import CONSTANTS, joined
from truequant.planning.leaves import is_leaf, site_name
from truequant.planning.norm_rules import BY_ROW, norm_rule
from truequant.planning.ops import Role, clamp_bounds
from truequant.planning.pooling import average_axes, of_windows, pool_arguments
from truequant.planning.products import is_product, product
from truequant.planning.recurrent import weights_of
from truequant.planning.repeats import Key, Repeats
from truequant.planning.resizing import linear_factors
from truequant.planning.values import Values
from truequant.planning.written_norms import Finder, Written


@dataclass(slots=True)
class Node:
    """A call with the decision about it. `reads` and `writes` are values, seen through ops that do nothing in evaluation."""

    index: int
    call: Call
    name: str
    place: str
    frame: Key
    leaf: bool
    action: Action
    reason: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    bounds: tuple[float | None, float | None] = (None, None)
    fused: list[Node] = field(default_factory=list)
    norm: Node | None = None
    affine: Affine | None = None
    """Of a layer, or an op that stands alone: the map of its channels that is computed with it, or is it."""
    fused_into: Node | None = None
    norm_rule: NormRule | None = None
    operand: int | None = None
    """Of a norm written by hand: which positional argument is, or is made of, what it reads."""
    written: Written | None = None
    parts: list[Node] = field(default_factory=list)
    """Of such a norm: the calls that lead to it and are computed with it."""
    part: Part | None = None
    """Of a call between a product and its softmax, the softmax or a product behind it."""
    factor: float = 1.0
    """Of a product of scores: by what they are multiplied before their quantizer."""

    @property
    def integer(self) -> bool:
        """Whether it computes new codes."""
        return self.action in COMPUTES

    @property
    def end(self) -> int:
        """The value after all that is fused into it."""
        return (self.fused[-1] if self.fused else self).writes[0]


class Graph(Values):
    """Nodes in order, with readers and grids. `alias` maps a value to the value that it is in evaluation."""

    def __init__(
        self, trace: Trace, modules: dict[str, nn.Module], trained: Trace | None = None, *, any_size: bool = False,
        without: Collection[int] = (),
    ) -> None:  # fmt: skip
        """any_size: whether axes behind the batch are of any size. without: calls of attention that stay float."""
        super().__init__(trace)
        self.flow = Flow(trace)
        self.parts, self.without = attentions(self.flow, without), frozenset(without)
        self.modules, self.any_size = modules, any_size
        self.repeats = Repeats(trace, trained or trace, modules)
        calls_of: dict[tuple[str, Frame], int] = {}
        for call in trace.calls:
            calls_of[call.owner, call.frame] = calls_of.get((call.owner, call.frame), 0) + 1
        self.leaves = {
            o
            for o, _ in calls_of
            if (o or weights_of(modules[o])) and is_leaf(modules[o]) and all(n == 1 for (p, _), n in calls_of.items() if p == o)
        }
        self._alias: dict[int, int] = {}
        self._calls: dict[int, Call] = {}
        self._norms = Finder(self._calls.get, self.resolve, self.shape)
        self.nodes = [self._node(i, call) for i, call in enumerate(trace.calls)]
        self.outputs = {self.resolve(v) for v in trace.outputs}
        self._parent: dict[int, int] = {}
        self.find_readers()

    def find_readers(self) -> None:
        """See who reads and writes each value; what is computed with a norm before it reads nothing of its own."""
        self.readers: dict[int, list[Node]] = {}
        self.writer: dict[int, Node] = {}
        parts = {part.index for node in self.nodes for part in node.parts}
        for node in self.nodes:
            if node.action == "identity":
                continue
            for value in dict.fromkeys(node.reads) if node.index not in parts else ():
                self.readers.setdefault(value, []).append(node)
            for value in node.writes:
                self.writer[value] = node

    def places(self, node: Node) -> tuple[str, ...]:
        """Paths of the module that calls a node: where this call is made, and all of them where it holds parameters."""
        shared = any(True for _ in self.modules[node.call.owner].parameters(recurse=False))
        return (node.place, *self.repeats.paths(node.call.owner)) if shared else (node.place,)

    def resolve(self, value: int) -> int:
        return self._alias.get(value, value)

    def _node(self, index: int, call: Call) -> Node:
        reads = tuple(self.resolve(v) for v in call.inputs)
        leaf = call.owner in self.leaves
        key = self.repeats.key(call.frame)
        part = self.parts.get(index)
        action, reason, bounds = attention_of(index, call, part, self) or classify(call, reads, self)
        alone = part is None and action in ("float", "add", "sub", "mul", "table", "concat")
        if alone and is_pointwise(index, call, self, self.flow, tables=False):
            action, reason = "pointwise", EACH_NUMBER
        elif alone and action == "float" and (operands := joined(call, self)) is not None:
            action, reason = CONSTANTS[call.op.role]
            reads = tuple(self.resolve(o.value) if isinstance(o, Ref) else self.add_constant(o) for o in operands)
        elif alone and action == "float" and is_pointwise(index, call, self, self.flow, tables=True):
            action, reason = "pointwise", EACH_NUMBER
        written = self._norms.find(call)
        if written is not None and written.source in self.on_codes:
            action, reason, reads = "normalize", BY_ROW, (written.source,)
        if action in ("softmax", "weights", "biased", *OF_SCORES):
            reads = (self.resolve(call.args[part.operand].value if part and part.operand else call.inputs[0]),)
        elif action == "attend":
            reads = (part.scores if part else reads[0], reads[1])
        elif action == "attention":
            given = attention_arguments(call.args, call.kwargs)
            reads = tuple(self.resolve(given[name].value) for name in ("query", "key", "value"))
        elif action == "lookup":
            reads = ()  # of integers that are no codes
        elif action == "movement":
            reads = reads[:1]  # of another tensor the shape alone: `expand_as`
        moves = action in (*MOVES, *OF_SCORES, "norm", "identity")
        if action == "pointwise" or (action == "movement" and reads[0] in self.exact):
            self.exact.update(call.outputs)
        if action in COMPUTES or action == "pointwise" or (moves and any(v in self.on_codes for v in reads)):
            self.on_codes.update(call.outputs)
        if action == "identity" and len(reads) == 1 and len(call.outputs) == 1:
            self._alias[call.outputs[0]] = reads[0]
        place = self.repeats.place(call.frame)
        name = site_name(call, key, place, leaf)
        place = call.owner if place is None else place
        node = Node(index, call, name, place, key, leaf, action, reason, reads, call.outputs, bounds, part=part)
        if action == "normalize" and written is not None:
            node.norm_rule, node.operand, node.written = written.rule, written.operand, written
        elif action == "normalize":
            node.norm_rule = norm_rule(call, self.shape(reads[0]))  # type: ignore[assignment]
        self._calls.update(dict.fromkeys(call.outputs, call))
        return node

    # -- values that share one grid ------------------------------------------------------------------------------------
    def grid(self, value: int) -> int:
        """The representative of all values that share this one's scale and zero point."""
        root = value
        while self._parent.get(root, root) != root:
            root = self._parent[root]
        while self._parent.get(value, value) != root:
            self._parent[value], value = root, self._parent.get(value, value)
        return root

    def join(self, values: Iterable[int]) -> None:
        first, *rest = (self.grid(v) for v in values)
        for other in rest:
            self._parent[max(first, other)] = min(first, other)
            first = min(first, other)

    def members(self, grid: int) -> Iterator[int]:
        return (v.index for v in self.values if self.grid(self.resolve(v.index)) == grid)


def classify(call: Call, reads: tuple[int, ...], graph: Graph) -> tuple[Action, str, tuple[float | None, float | None]]:
    """What quantization makes of a call, from the op and its arguments alone."""
    none = (None, None)
    role = call.op.role
    if role is Role.LOOKUP:
        return (*_lookup(call), none)
    if not all(graph.is_float(v) for v in reads):
        return "float", "reads tensors that are not floating point", none
    if len(reads) == 1 and reads[0] in graph.on_codes and of_channels(call, graph.shape(reads[0])) is not None:
        return "norm", "a factor or bias for each channel", none
    match role:
        case Role.LAYER if not is_product(call):
            return (*_layer(call, reads), none)
        case Role.LAYER | Role.PRODUCT:
            return (*product(call, reads, graph), none)
        case Role.NORM:
            return "norm", "stands alone: no layer before it to fold into", none
        case Role.CLAMP:
            bounds = clamp_bounds(call.op.name, call.args, dict(call.kwargs))
            return ("float", "its bounds are tensors", none) if bounds is None else ("clamp", "clamp of codes", bounds)
        case Role.ADD | Role.MUL | Role.SUB:
            return (*_binary(call, reads, graph), none)
        case Role.SCALAR:
            return (*_scalar(call, reads, graph), none)
        case Role.TABLE:
            known = len(reads) == 1 and isinstance(call.args[0] if call.args else None, Ref)
            if not known or any(leaf.elements > 1 for leaf in _constants(call)):
                return "float", "a parameter of it is no single number: no one table holds it", none
            return "table", "a table of codes", none
        case Role.AVERAGE:
            return (*_average(call, graph, reads[0]), none)
        case Role.NORMALIZE:
            return (*_normalize(call, reads, graph), none)
        case Role.SOFTMAX if reads[0] in graph.on_codes:
            return "float", "an axis, mask or neighbour of it is left in float", none
        case Role.SOFTMAX:
            return "float", "its input is left in float", none
        case Role.CONCAT:
            if any(leaf.elements for leaf in _constants(call)):
                return "float", "joins a tensor that is no activation", none
            if len(reads) == 1 and call.op.name == "cat":  # beside an empty tensor, as a cache begins with
                return "movement", "moves codes", none
            return "concat", "one grid for all parts", none
        case Role.MOVEMENT:
            return (*_movement(call, reads, graph), none)
        case Role.IDENTITY:
            return "identity", "nothing in evaluation", none
        case _:
            return "float", "no integer form known", none


def _constants(call: Call) -> list[Constant]:
    return [leaf for leaf in pytree.tree_leaves((call.args, dict(call.kwargs))) if isinstance(leaf, Constant)]


def _layer(call: Call, reads: tuple[int, ...]) -> tuple[Action, str]:
    name, arguments = call.op.name, call.args
    if name == "addmm":  # bias, input, weight
        arguments = (*arguments[1:3], arguments[0])
        if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("beta", 1) != 1:
            return "float", "its terms are scaled"
    if len(reads) != 1 or not isinstance(arguments[0], Ref):
        return "float", "its weight or bias depends on the inputs"
    if name in ("matmul", "addmm") and not (isinstance(arguments[1], Constant) and len(arguments[1].shape) == 2):
        return "float", "its weight is no matrix"
    if name == "addmm" and not (isinstance(arguments[2], Constant) and len(arguments[2].shape) == 1):
        return "float", "its bias is no vector"
    return "layer", "integer layer"


def _lookup(call: Call) -> tuple[Action, str]:
    if not isinstance(call.args[0], Ref) or len(call.inputs) != 1 or len(call.args) < 2:
        return "float", "its rows depend on the inputs"
    return "lookup", "rows of codes"


def _binary(call: Call, reads: tuple[int, ...], graph: Graph) -> tuple[Action, str]:
    """Add, sub or mul of two activations; with a number it is a table."""
    name = call.op.role.value
    alpha = call.kwargs.get("alpha", 1)
    if alpha != 1 or len(call.args) > 2 or call.kwargs.keys() - {"alpha", "other"}:
        return "float", "its operands are scaled, or it writes elsewhere"
    if len(reads) < 2:
        return _scalar(call, reads, graph)
    if not any(v in graph.on_codes for v in reads) and not all(v in graph.input_values for v in reads):
        return "float", "neither operand is computed in integer"
    if any(graph.is_far(v) for v in reads):
        return "float", "one operand is a mask: its values leave an 8-bit grid nothing else"
    return name, f"integer {name}"  # type: ignore[return-value]


def _scalar(call: Call, reads: tuple[int, ...], graph: Graph) -> tuple[Action, str]:
    """A function of one activation and numbers: a table, where its input is codes already."""
    operands = [*call.args, *call.kwargs.values()]
    if len(reads) != 1 or sum(isinstance(o, Ref) for o in operands) != 1 or not isinstance(call.args[0], Ref):
        return "float", "one operand is no activation"
    if any(c.elements != 1 for c in _constants(call)):
        return "float", "one operand is a tensor of numbers"
    if call.kwargs.get("rounding_mode") is not None:
        return "float", "rounds"
    if reads[0] not in graph.on_codes:
        return "float", "its input is left in float"
    return "table", "a table of codes"


def _normalize(call: Call, reads: tuple[int, ...], graph: Graph) -> tuple[Action, str]:
    rule = norm_rule(call, graph.shape(reads[0]))
    if isinstance(rule, str):
        return "float", rule
    if reads[0] not in graph.on_codes:
        return "float", "its input is left in float"
    return "normalize", BY_ROW


_BY_SHAPE = ("expand", "view")
"""Ops that another tensor may tell the shape of the result: `expand_as`, `view_as`, `reshape_as`."""


def _movement(call: Call, reads: tuple[int, ...], graph: Graph) -> tuple[Action, str]:
    name = call.op.name
    if name in _BY_SHAPE and isinstance(call.args[0], Ref):
        reads = reads[:1]
    elif len(reads) != 1 or (_constants(call) and not _picks(call, len(graph.shape(reads[0])))):
        return "float", "indexed by a tensor"
    if name == "pad":
        mode = call.args[2] if len(call.args) > 2 else call.kwargs.get("mode", "constant")
        value = call.args[3] if len(call.args) > 3 else call.kwargs.get("value")
        if mode == "constant" and value not in (None, 0, 0.0):
            return "float", f"pads with {value}, not with real zeros"
    if "max_pool" in name and (call.kwargs.get("return_indices") or len(call.outputs) > 1):
        return "float", "returns indices"
    if name.startswith("repeat") and not _repeats(name, call.args, call.kwargs, len(graph.shape(reads[0]))):
        return "float", "repeats the batch, or adds axes"
    if name == "interpolate":
        mode = call.args[3] if len(call.args) > 3 else call.kwargs.get("mode", "nearest")
        if mode != "nearest":
            if linear_factors(call.args, call.kwargs, graph.shape(reads[0])) is None:
                return "float", f"interpolates, {mode}"
            if graph.any_size and not _by_factors(call):
                return "float", f"interpolates, {mode}, to a size that follows the inputs"
            return "resize", f"interpolates, {mode}: integer layer of fixed weights"
    return "movement", "moves codes"


def _picks(call: Call, rank: int) -> bool:
    """Whether constant places of one axis behind the first are taken: `x[:, places]`, `x.index_select(1, places)`."""
    if call.op.name == "index_select":
        given = dict(zip(("input", "dim", "index"), call.args, strict=False)) | dict(call.kwargs)
        axis, places = given["dim"], given["index"]
    elif call.op.name == "getitem":
        items = list(call.args[1]) if isinstance(call.args[1], tuple) else [call.args[1]]
        if any(not isinstance(i, (Constant, slice)) and i is not Ellipsis for i in items):
            return False
        axis = next(n for n, i in enumerate(items) if isinstance(i, Constant))
        if any(i is Ellipsis for i in items[:axis]):
            axis -= len(items)
        places = items[axis] if sum(isinstance(i, Constant) for i in items) == 1 else None
    else:
        return False
    if not isinstance(places, Constant) or len(places.shape) != 1 or axis % rank == 0:
        return False
    return places.dtype in (torch.int64, torch.int32) or places.places is not None


def _by_factors(call: Call) -> bool:
    """Whether an interpolation says by how much, and not to which size."""
    return (call.args[2] if len(call.args) > 2 else call.kwargs.get("scale_factor")) is not None


def _repeats(op: str, args: Sequence[Any], kwargs: Mapping[str, Any], rank: int) -> bool:
    """Whether axes behind the first are repeated, and nothing else."""
    if op == "repeat_interleave":
        times, axis = (args[i] if len(args) > i else kwargs.get(k) for i, k in ((1, "repeats"), (2, "dim")))
        return isinstance(times, int) and isinstance(axis, int) and axis % rank > 0
    times = args[1:] or next(iter(kwargs.values()), ())
    times = tuple(times[0]) if len(times) == 1 and not isinstance(times[0], int) else tuple(times)
    return len(times) == rank and times[0] == 1 and all(isinstance(n, int) and n > 0 for n in times)


def _average(call: Call, graph: Graph, value: int) -> tuple[Action, str]:
    shape = graph.shape(value)
    axes = average_axes(call.op.name, call.args, call.kwargs, len(shape))
    if axes is not None:
        if call.kwargs.get("dtype") not in (None, torch.float32) or -len(shape) in axes:
            return "float", "averages over the batch, or changes the dtype"
        if value not in graph.on_codes and value not in graph.input_values:
            return "float", "its input is left in float"
        return "average", "integer sum"
    arguments = pool_arguments(call.op.name, call.args, call.kwargs, shape)
    if arguments is None:
        return "float", "windows of an adaptive pooling differ in size"
    return of_windows(arguments, shape)
