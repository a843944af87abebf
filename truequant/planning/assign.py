"""Which scheme each grid and each weight gets."""

from __future__ import annotations

from collections.abc import Sequence

from truequant.errors import PlanError, SchemeError
from truequant.planning.actions import BETWEEN_CODES, KEEP_SIGN
from truequant.planning.algorithms import check_activation, check_dynamic, check_weight
from truequant.planning.float_weights import coded, is_recurrent, weights_in_float
from truequant.planning.graph import Graph, Node
from truequant.planning.ops import LINEAR_OPS, Role
from truequant.planning.overrides import Overrides
from truequant.planning.pooling import pool_arguments, uneven
from truequant.planning.products import is_product
from truequant.planning.scores import scores_grids, scores_scheme
from truequant.planning.wide_sums import wide_sums
from truequant.schemes import (
    INHERIT,
    Inherit,
    PerChannel,
    PerGroup,
    PerTensor,
    QConfig,
    QuantScheme,
    is_dynamic,
    uint8,
    uint16,
)


def leave_in_float(graph: Graph, overrides: dict[int, Overrides], config: QConfig) -> None:
    """Take out of the integer domain what the rules say, layers without a scheme for their weight, and norms where a runtime
    that is not here has its own.
    """
    for node in graph.nodes:
        said = overrides[node.index]
        if said.in_float:
            node.action, node.reason = "float", f"{said.rule}"
        elif coded(node, graph, overrides):
            node.action, node.reason = "float", "rows of a table of integer weights"
        elif node.action == "layer" and (config.weight if said.weight is INHERIT else said.weight) is None:
            node.action, node.reason = "float", "no scheme for its weight"
        elif node.action == "normalize" and not config.target.norms:
            node.action, node.reason = "float", f"target '{config.target}' normalizes in float"
        elif node.action == "pool" and not config.target.uneven_averages and _uneven(node, graph):
            node.action, node.reason = "float", f"target '{config.target}' has no rule for averages over uneven windows"


def _uneven(node: Node, graph: Graph) -> bool:
    arguments = pool_arguments(node.call.op.name, node.call.args, node.call.kwargs, graph.shape(node.reads[0]))
    return arguments is not None and uneven(arguments)


def ends(graph: Graph) -> tuple[set[int], set[int]]:
    """Indices of the layers with no layer before them, and of those with none behind them."""
    behind: set[int] = set()  # values that depend on a layer
    first, has_next = set(), set()
    sources: dict[int, set[int]] = {}
    for node in graph.nodes:
        reached = set().union(*(sources.get(v, set()) for v in node.reads)) if node.reads else set()
        if _has_weight(node):
            if not reached:
                first.add(node.index)
            has_next |= reached
            reached = {node.index}
        for value in node.writes:
            sources[graph.resolve(value)] = reached | (
                sources.get(graph.resolve(value), set()) if node.action == "identity" else set()
            )
        behind |= set(node.writes)
    layers = {n.index for n in graph.nodes if _has_weight(n)}
    return first, layers - has_next


def _has_weight(node: Node) -> bool:
    return node.call.op.role is Role.LAYER and not is_product(node.call)


def weight_scheme(
    node: Node, said: Overrides, config: QConfig, at_an_end: bool, rank: int, features: int | None = None
) -> QuantScheme:
    """The scheme of a layer's weight, which the target must be able to hold.

    features: of a linear layer that reads floats, the length of a row of its weight: groups of it may have scales.
    """
    scheme = config.ends.weight if at_an_end and config.ends is not None else config.weight
    if isinstance(said.weight, QuantScheme):
        scheme = said.weight
    assert scheme is not None  # leave_in_float has seen to it
    granularity = scheme.granularity
    deployable = isinstance(granularity, PerTensor) or (isinstance(granularity, PerChannel) and granularity.axis in (0, -rank))
    if isinstance(granularity, PerGroup) and features is not None:
        deployable = features % granularity.size == 0
        if not deployable:
            raise SchemeError(
                f"'{node.name}': {features} inputs do not make groups of {granularity.size}",
                got=str(granularity),
                expected=f"a size that divides {features}",
                fix=f'Rule("{node.name}", weight=QuantScheme({scheme.dtype}, PerChannel(0)))',
            )
    if not deployable:
        raise SchemeError(
            f"'{node.name}': {granularity} cannot be deployed to target '{config.target}'",
            got=f"{granularity}, weight of {rank} axes",
            expected="PerTensor() or PerChannel(axis=0)",
            fix=f'Rule("{node.name}", weight=QuantScheme({scheme.dtype}, PerChannel(0)))',
        )
    if not scheme.dtype.signed or not scheme.is_symmetric or scheme.dtype.bits > 8:
        raise SchemeError(
            f"'{node.name}': weights are signed, symmetric and of at most 8 bits",
            got=str(scheme),
            fix=f'Rule("{node.name}", weight=QuantScheme(int8, PerChannel(0)))',
        )
    kind = "linear" if node.call.op.name in LINEAR_OPS else "conv"
    if isinstance(granularity, PerChannel) and not {"layer", kind} & set(config.target.per_channel):
        raise SchemeError(
            f"'{node.name}': target '{config.target}' has one scale for all weights of a {kind} layer",
            got=str(granularity),
            expected="PerTensor()",
            fix=f'Rule("{node.name}", weight=QuantScheme({scheme.dtype}, PerTensor()))',
        )
    _wide_enough(scheme, config.target.weight_bits, node.name, "weights", config)
    check_weight(scheme, node.name, features is None)
    return scheme


def activation_schemes(
    graph: Graph, overrides: dict[int, Overrides], config: QConfig, last: set[int]
) -> dict[int, QuantScheme | None]:
    """The scheme of each grid that an integer op writes or reads; None where the config leaves it in float."""
    given = _GivenByGrid(graph, config, last)
    inputs, scores = given.inputs, given.scores
    result: dict[int, QuantScheme | None] = {}
    for node in graph.nodes:
        if node.integer:
            for value in (*node.reads, node.end):
                result.setdefault(graph.grid(value), None)
        elif is_recurrent(node) and weights_in_float(node, graph, overrides, config):
            result.setdefault(graph.grid(node.reads[0]), None)
    for grid in result:
        consumers = [n for n in graph.nodes if n.integer and any(graph.grid(v) == grid for v in n.reads)]
        writers = [n for n in graph.nodes if (n.integer or coded(n, graph, overrides)) and graph.grid(n.end) == grid]
        # What the config says of such a grid; then what rules say of the ops that write it; then of those that read it.
        scheme = given.scheme(grid, consumers)
        for node in writers:
            for link in (node, *node.fused):
                said = overrides[link.index].output
                scheme = scheme if isinstance(said, Inherit) else said
        asked = [n for n in consumers if n.action != "attend" or grid not in scores]
        wanted = [(n, scheme if isinstance(s := overrides[n.index].input, Inherit) else s) for n in asked]
        result[grid] = scheme = _agreed(wanted, scheme)
        if scheme is not None and is_dynamic(scheme):
            check_dynamic(scheme, _where(writers, consumers))
        elif scheme is not None:
            _deployable(scheme, writers, consumers, config)
            nonnegative = grid not in inputs and _nonnegative(graph, grid, set())
            check_activation(scheme, _where(writers, consumers), not nonnegative and grid not in inputs)
            if not scheme.dtype.signed and scheme.symmetric is None and nonnegative:
                result[grid] = scheme.with_(symmetric=True)
    return result


class _GivenByGrid:
    """What a config says of a grid by what lies on it: the model's inputs, its outputs, constants, scores, anything else."""

    def __init__(self, graph: Graph, config: QConfig, last: set[int]) -> None:
        self.config, self.last = config, last
        self.inputs = {graph.grid(graph.resolve(v)) for v in graph.trace.inputs}
        self.outputs, self.scores = {graph.grid(v) for v in graph.outputs}, scores_grids(graph)
        self.wide = wide_sums(graph) if _widens(config) else frozenset()
        written = {graph.grid(w) for n in graph.nodes for w in n.writes}
        self.constants = {graph.grid(v) for v in graph.constants} - self.inputs - written

    def scheme(self, grid: int, consumers: Sequence[Node]) -> QuantScheme | None:
        """consumers: the integer nodes that read it."""
        found = self._narrow(grid, consumers)
        return found.with_(dtype=uint16) if found is not None and grid in self.wide else found

    def _narrow(self, grid: int, consumers: Sequence[Node]) -> QuantScheme | None:
        config = self.config
        if grid in self.inputs:
            return config.input
        if grid in self.outputs:
            return config.output
        if grid in self.constants:
            return _of_constant(config)
        if grid in self.scores:
            return scores_scheme(config.activation, config.target)
        if config.ends is not None and any(n.index in self.last for n in consumers):
            return config.ends.activation
        return config.activation


def _widens(config: QConfig) -> bool:
    """Whether sums with constants have 16 bits: where activations have 8, and the target has more."""
    given = config.activation
    plain = given is not None and not is_dynamic(given) and given.dtype == uint8 and not given.power_of_two
    return plain and 16 in config.target.activation_bits


def _of_constant(config: QConfig) -> QuantScheme | None:
    """Of constants that are added: few numbers, which all inputs share. They have 8 bits where activations have less."""
    given = config.activation
    narrow = given is not None and not is_dynamic(given) and given.dtype.bits < 8
    return config.input if narrow and config.input is not None else given


def _where(writers: list[Node], consumers: list[Node]) -> str:
    return next((n.name for n in (*writers, *consumers)), "the input of a recurrent layer")


def _agreed(wanted: list[tuple[Node, QuantScheme | None]], base: QuantScheme | None) -> QuantScheme | None:
    if not wanted:
        return base
    first, scheme = wanted[0]
    for other, different in wanted[1:]:
        if different != scheme:
            raise PlanError(
                f"'{first.name}' and '{other.name}' read the same edge and disagree about its scheme",
                got=f"{first.name}: {scheme}; {other.name}: {different}",
                expected="one scheme an edge",
                fix="give both the same input=, or set output= on the op that writes the edge",
            )
    return scheme


def _wide_enough(scheme: QuantScheme, bits: tuple[int, ...], where: str, what: str, config: QConfig) -> None:
    if scheme.dtype.bits not in bits:
        raise SchemeError(
            f"'{where}': target '{config.target}' has no {what} of {scheme.dtype.bits} bits",
            got=str(scheme.dtype),
            expected=" or ".join(map(str, bits)),
            fix=f"config.for_target({config.target.name!r})",
        )


def _readable(scheme: QuantScheme, where: str, config: QConfig) -> None:
    """SchemeError unless the target's integer kernels read such codes."""
    wanted = config.target.activations
    signed, symmetric = scheme.dtype.signed, scheme.is_symmetric
    fits = {
        "any": True,
        "unsigned": not signed,
        "signed": signed,
        "signed and symmetric": signed and symmetric,
    }[wanted]
    if not fits:
        raise SchemeError(
            f"'{where}': activations of target '{config.target}' are {wanted}",
            got=f"{scheme.dtype}, {'symmetric' if symmetric else 'with a zero point'}",
            expected=wanted,
            fix=f"config.for_target({config.target.name!r})",
        )
    _wide_enough(scheme, config.target.activation_bits, where, "activations", config)


def _deployable(scheme: QuantScheme, writers: list[Node], consumers: list[Node], config: QConfig) -> None:
    where = _where(writers, consumers)
    _readable(scheme, where, config)
    if not isinstance(scheme.granularity, PerTensor):
        raise SchemeError(
            f"'{where}': activations have one scale a tensor on target '{config.target}'",
            got=str(scheme.granularity), expected="PerTensor()", fix=f'Rule("{where}", output=QuantScheme({scheme.dtype}))',
        )  # fmt: skip
    if scheme.dtype.bits == 1 and scheme.dtype.signed:
        raise SchemeError(
            f"'{where}': {scheme.dtype} activations cannot be deployed to target '{config.target}'",
            expected="uint1 … uint8, uint16, int2 … int8, int16",
        )


_POSITIVE_TABLES = frozenset(("sigmoid", "hardsigmoid", "softplus", "abs"))


def _nonnegative(graph: Graph, grid: int, seen: set[int]) -> bool:
    """Whether no value of a grid is ever negative: everything that writes to it ends in a ReLU or averages such values."""
    if grid in seen:
        return True
    seen.add(grid)
    written = {v for n in graph.nodes if n.integer for v in [n.writes[0], *(w for link in n.fused for w in link.writes)]}
    for value in graph.members(grid):
        if value in written or graph.resolve(value) != value:
            continue
        writer = graph.writer.get(value)
        if writer is None or writer.action in BETWEEN_CODES:
            return False
    return all(_writes_nonnegative(graph, n, seen) for n in graph.nodes if n.integer and graph.grid(n.end) == grid)


def _writes_nonnegative(graph: Graph, node: Node, seen: set[int]) -> bool:
    if node.bounds[0] is not None and node.bounds[0] >= 0:
        return True
    if node.action in KEEP_SIGN:
        return all(_nonnegative(graph, graph.grid(v), seen) for v in node.reads)
    return node.action == "softmax" or (node.action == "table" and node.call.op.name in _POSITIVE_TABLES)
