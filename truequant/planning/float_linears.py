"""Linear layers whose input is left in float: weights on a grid of their own, tokens on grids found at run time."""

from __future__ import annotations

from collections.abc import Sequence

from truequant.errors import SchemeError
from truequant.planning.graph import Graph, Node
from truequant.planning.ops import LINEAR_OPS
from truequant.schemes import QConfig, QuantScheme, Rule, is_dynamic


def is_linear(node: Node) -> bool:
    """Whether a node multiplies tokens by a weight of its own."""
    return node.action == "layer" and node.call.op.name in LINEAR_OPS


def check_uses(graph: Graph, rules: Sequence[tuple[Node, Sequence[Rule]]], config: QConfig) -> None:
    """SchemeError where a dynamic scheme is said to be for what is no linear layer."""
    schemes = [config.weight, *([config.ends.weight, config.ends.activation] if config.ends is not None else [])]
    schemes += [choice for rule in config.rules for choice in (rule.weight, rule.output) if isinstance(choice, QuantScheme)]
    if any(is_dynamic(scheme) for scheme in schemes):
        raise SchemeError(
            "Dynamic() is for what a linear layer reads",
            got="a weight, an output or an end of the model with a scale for each token",
            fix="activation= of the config, or input= of a rule",
        )
    linear = [node for node in graph.nodes if is_linear(node)]
    if is_dynamic(config.activation) and not linear:
        raise SchemeError(
            "Dynamic() is for what a linear layer reads, and the model has none",
            got=str(config.activation), expected="nn.Linear, F.linear, or a product with a matrix of weights",
            fix="QConfig.preset('w8a8') for convolutions",
        )  # fmt: skip
    for node, said in rules:
        rule = next((r for r in reversed(said) if isinstance(r.input, QuantScheme)), None)
        if rule is None or not isinstance(rule.input, QuantScheme) or not is_dynamic(rule.input):
            continue
        alone = not any(rule in others for other, others in rules if is_linear(other))
        if not is_linear(node) and (node.action == "layer" or alone):
            raise SchemeError(
                f"'{node.name}': {rule!r} is for what a linear layer reads, and this is {node.call.op.name}",
                got=str(rule.input), expected="nn.Linear, F.linear, or a product with a matrix of weights",
                fix=f'Rule("{node.name}", input=QuantScheme(uint8)), or None to leave it in float',
            )  # fmt: skip


def gridless(node: Node, scheme: QuantScheme | None) -> None:
    """Make a layer whose input has no grid of its own what it then is."""
    dynamic = is_dynamic(scheme)
    if is_linear(node):
        node.action = "dynamic" if dynamic else "weight_only"
        node.reason = "integer sums, one scale a token" if dynamic else "float sums, integer weights"
    else:
        layer = node.action == "layer"
        node.action, node.reason = "float", "its input is left in float"
        if dynamic and layer:
            node.reason += ": scales of tokens are for linear layers"
