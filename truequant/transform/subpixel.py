"""A transposed convolution as an ordinary one.

Its output at `o` sums `x[i] * w[t]` over `i * stride - padding + t * dilation = o`. With `u = o + padding = m * stride + r`,
only the taps with `t * dilation = j * stride + r` reach phase r, and they read `x[m - j]`: one convolution over x for each
phase. Their channels lie side by side, move into space, and what the padding cuts off is cut off. Runtimes move whole pixels:
the channels of one phase lie together. A layer for each channel alone is a layer a phase, since no runtime is quick at several
results a channel.
(Shi et al. 2016, arXiv:1609.05158.)
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode

from truequant import numerics
from truequant.integer import nodes as program_nodes
from truequant.transform.lowering import Codes, Lowering, sizes


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


def into_space(low: Lowering, output: Codes, layer: program_nodes.Conv, block: tuple[int, ...]) -> Codes:
    """Emit the layer, whose result has the phases of a channel side by side, and what moves them into space: `output`."""
    phases, groups = math.prod(block), layer.groups
    joined = low.codes(low.unique(f"{output.name}@phases"), output.grid)
    depthwise = groups > 1 and layer.weight.shape[1] == 1 and len(layer.weight) == groups * phases
    if depthwise:
        parts = [low.codes(low.unique(f"{output.name}@phase{i}"), output.grid) for i in range(phases)]
        for i, part in enumerate(parts):
            low.emit(_rows(replace(layer, output=part.name), slice(i, None, phases)))
        low.emit(program_nodes.Concat(tuple(part.name for part in parts), joined.name, 1))
    elif groups == 1:
        order = torch.arange(len(layer.weight)).reshape(-1, phases).t().flatten()
        low.emit(_rows(replace(layer, output=joined.name), order))
    else:
        low.emit(replace(layer, output=joined.name))
    low.emit(program_nodes.DepthToSpace(joined.name, output.name, block, depthwise or groups == 1))
    return output


def _rows(layer: program_nodes.Conv, rows: Any) -> program_nodes.Conv:
    """Some output channels of a layer."""
    scale = layer.weight_scale
    scale = scale if len(scale) == 1 else scale[rows]
    return replace(layer, weight=layer.weight[rows].contiguous(), weight_scale=scale, bias=layer.bias[rows])
