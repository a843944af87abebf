"""A transposed convolution as an ordinary one.

Its output at `o` sums `x[i] * w[t]` over `i * stride - padding + t * dilation = o`. With `u = o + padding = m * stride + r`,
only the taps with `t * dilation = j * stride + r` reach phase r, and they read `x[m - j]`: one convolution over x for each
phase. Their channels lie side by side, move into space, and what the padding cuts off is cut off.
(Shi et al. 2016, arXiv:1609.05158.)
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node as GraphNode

from truequant import numerics
from truequant.transform.lowering import sizes


@dataclass(frozen=True, slots=True, eq=False)
class SubPixel:
    """weight: `(out * phases, in / groups, *taps)`; padding: of the convolution; crop: of its result, moved into space."""

    weight: Tensor
    padding: tuple[tuple[int, int], ...]
    crop: tuple[tuple[int, int], ...]


def transposed_arguments(node: GraphNode) -> dict[str, Any]:
    """Arguments of `aten.conv_transpose{1,2,3}d` by name, sizes as tuples."""
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    found: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    n = node.meta["val"].dim() - 2
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    return {"groups": found.get("groups", 1)} | {k: sizes(found.get(k, v), n) for k, v in defaults.items()}


def sub_pixel(
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> SubPixel:
    """weight: `(out, in / groups, *kernel)`."""
    kernel = weight.shape[2:]
    taps, pads, crop = [], [], []
    for k, s, p, extra, d in zip(kernel, stride, padding, output_padding, dilation, strict=True):
        count = numerics.taps_of_a_phase(k, s, d)  # the largest j, plus one
        behind = max(0, (d * (k - 1) + extra - p) // s)
        taps.append(count)
        pads.append((count - 1, behind))
        crop.append((p, s * behind + s + p - d * (k - 1) - extra - 1))
    phases = list(itertools.product(*(range(s) for s in stride)))
    result = weight.new_zeros((weight.shape[0], len(phases), weight.shape[1], *taps))
    for tap in itertools.product(*(range(k) for k in kernel)):
        reach = [t * d for t, d in zip(tap, dilation, strict=True)]
        phase = phases.index(tuple(u % s for u, s in zip(reach, stride, strict=True)))
        place: Any = tuple(n - 1 - u // s for u, s, n in zip(reach, stride, taps, strict=True))
        source: Any = (slice(None), slice(None), *tap)
        result[(slice(None), phase, slice(None), *place)] = weight[source]
    return SubPixel(result.reshape(-1, weight.shape[1], *taps).contiguous(), tuple(pads), tuple(crop))
