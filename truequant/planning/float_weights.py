"""Weights that a float op reads by their codes: those of recurrent layers, and the tables of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from truequant.planning.actions import GRIDLESS
from truequant.planning.capture import Constant
from truequant.planning.graph import Graph, Node
from truequant.planning.ops import Role
from truequant.planning.overrides import Overrides
from truequant.planning.recurrent import OPS as RECURRENT
from truequant.planning.recurrent import weights_of
from truequant.schemes import QConfig, QuantScheme


def is_recurrent(node: Node) -> bool:
    """Whether a node is a recurrent layer of torch's, whose recurrence stays float."""
    return node.call.op.name in RECURRENT and node.leaf


def coded(node: Node, graph: Graph, overrides: Mapping[int, Overrides]) -> bool:
    """Whether a rule asks for integer weights of an embedding: its rows are then values of these, not codes of a grid."""
    said = overrides[node.index]
    return isinstance(said.weight, QuantScheme) and not said.in_float and own_table(node, graph) is not None


def own_table(node: Node, graph: Graph) -> str | None:
    """The name that an embedding's table has in the module whose forward reads it; None where it is another module's."""
    table = _weight(node) if node.call.op.role is Role.LOOKUP else None
    if table is None or table.name is None:
        return None
    around, _, name = table.name.rpartition(".")
    tensor = getattr(graph.modules[around], name)
    owner = graph.modules[node.call.owner]
    return next((own for own, held in chain(owner._parameters.items(), owner._buffers.items()) if held is tensor), None)


def weights_in_float(node: Node, graph: Graph, overrides: Mapping[int, Overrides], config: QConfig) -> tuple[str, ...]:
    """Parameters of a float op that are quantized, by their names in its module.

    Of a recurrent layer all matrices; of an embedding the table, where a rule says so, or where a linear layer on values holds
    the same tensor: two copies of it, one of them in float, would take more than the float model's one.
    """
    said = overrides[node.index]
    if node.action != "float" or said.in_float or said.weight is None:
        return ()
    if is_recurrent(node):
        wanted = said.weight if isinstance(said.weight, QuantScheme) else config.weight
        return () if wanted is None else weights_of(graph.modules[node.call.owner])
    name = own_table(node, graph)
    return (name,) if name is not None and (coded(node, graph, overrides) or tied_layer(node, graph) is not None) else ()


def tied_layer(node: Node, graph: Graph) -> Node | None:
    """The linear layer on values whose weight is the table that a node reads."""
    table = _weight(node) if own_table(node, graph) is not None else None
    layers = (n for n in graph.nodes if n.action in GRIDLESS and n.call.op.name == "linear")
    return None if table is None else next((n for n in layers if _weight(n) == table), None)


def reason_of(node: Node, weights: tuple[tuple[str, str], ...]) -> str:
    """Why a float op has integer weights."""
    if is_recurrent(node):
        return "recurrence in float; weights and input quantized"
    owners = {quantizer.rpartition(".")[0] for _, quantizer in weights} - {node.call.owner}
    return "rows of a table of integer weights" + "".join(f", those of '{owner}'" for owner in owners)


def _weight(node: Node) -> Constant | None:
    """Of an embedding the table, of a linear layer the weight: both have the same rows."""
    given = node.call.args[1] if len(node.call.args) > 1 else node.call.kwargs.get("weight")
    return given if isinstance(given, Constant) else None
