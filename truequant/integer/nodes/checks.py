"""Checks that several kinds of node share. Each raises ConversionError, naming the node."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.edge import SMALLEST_NORMAL, Edge
from truequant.integer.nodes.base import Node
from truequant.schemes import RULES

MAX_SIZE = 2**31 - 1
"""Bound of every size, padding, stride and position that a node names."""


def check_sizes(node: Node, what: str, values: tuple[int, ...], least: int) -> None:
    """`least … MAX_SIZE` for all of them."""
    if not all(least <= value <= MAX_SIZE for value in values):
        raise ConversionError(f"{node.label}: {what} out of range", got=values, expected=f"{least} … {MAX_SIZE}")


def check_tensor(
    node: Node, field: str, tensor: Tensor, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...] | None
) -> None:
    """Of that dtype, of one of those shapes (None: of any), not empty."""
    if tensor.dtype != dtype:
        raise ConversionError(f"{node.label}: {field} has a wrong dtype", got=tensor.dtype, expected=dtype)
    if shapes is not None and tuple(tensor.shape) not in shapes:
        expected = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ConversionError(f"{node.label}: {field} of a wrong shape", got=tuple(tensor.shape), expected=expected)
    if tensor.numel() == 0:
        raise ConversionError(f"{node.label}: {field} is empty", got=tuple(tensor.shape))


def check_clamp(node: Node, low: int, high: int, target: Edge) -> None:
    """A clamp to codes that the output has."""
    if not target.qmin <= low <= high <= target.qmax:
        raise ConversionError(
            f"{node.label}: clamped to codes that its edge lacks", got=f"{low} … {high}", expected=target.codes
        )


def check_entries(node: Node, entries: Tensor, target: Edge) -> None:
    """Stored results that are codes of the output."""
    low, high = int(entries.min()), int(entries.max())
    if entries.dim() < 1 or not target.qmin <= low <= high <= target.qmax:
        raise ConversionError(f"{node.label}: entries outside the output's codes", got=f"{low} … {high}", expected=target.codes)


def check_ratio(node: Node, edges: Mapping[str, Edge], *, of_product: bool = False) -> None:
    """The ratio of scales that enters the named rules stays finite: of the inputs' largest, or of their product."""
    target = float32(edges[node.output].scale)
    scales = torch.stack([float32(edges[name].scale) for name in node.reads])
    if not bool(torch.isfinite((scales.prod() if of_product else scales.max()) / target)):
        raise ConversionError(
            f"{node.label}: scales too far apart for float32", got=f"inputs {scales.tolist()}, output {float(target)}"
        )


def check_rule(node: Node, rule: str) -> None:
    """A rule that `numerics` knows."""
    if rule not in RULES:
        raise ConversionError(f"{node.label}: no such rule", got=repr(rule), expected=" or ".join(map(repr, RULES)))


def check_meaning(node: Node, edges: Mapping[str, Edge], *, clamped: bool = False) -> None:
    """What moves codes keeps scale and zero point, and the output can hold them (clamped codes: what is left of them)."""
    target = edges.get(node.output)
    for name in node.reads:
        if target is None:
            break
        source = edges[name]
        if (source.scale, source.zero_point) != (target.scale, target.zero_point):
            raise ConversionError(f"{node.label} moves codes but changes their meaning", got=target, expected=source)
        if not clamped and not target.qmin <= source.qmin <= source.qmax <= target.qmax:
            raise ConversionError(
                f"{node.label}: input codes that the output cannot hold", got=source.codes, expected=target.codes
            )


def float32(value: float) -> Tensor:
    """A Python number as a 0-d float32 tensor."""
    return torch.tensor(value, dtype=torch.float32)


def all_normal(values: Tensor) -> bool:
    """Whether all are positive, finite, normal float32 numbers."""
    return bool((torch.isfinite(values) & (values >= SMALLEST_NORMAL)).all())
