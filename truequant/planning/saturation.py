"""Narrower weights where x86 CPUs without VNNI could saturate: exact there, and at full speed."""

from __future__ import annotations

import math

from truequant import numerics
from truequant.planning.graph import Graph, Node
from truequant.planning.ops import LINEAR_OPS
from truequant.schemes import QConfig, QuantScheme, int7


def narrowed(node: Node, graph: Graph, scheme: QuantScheme, activation: QuantScheme | None, config: QConfig) -> QuantScheme:
    """The scheme of a layer's weight, of 7 bits where `config` narrows and codes of `scheme` times those of `activation`
    (a grid's, or that of tokens at run time) could leave int16; else `scheme` itself.
    """
    if config.saturation != "narrow" or not config.target.saturating_pairs or activation is None:
        return scheme
    largest = 255 if activation.dtype.signed else activation.qmax  # kernels add 128 to signed codes
    products = numerics.products_in_int16(*_shape_and_groups(node, graph))
    fits = activation.dtype.bits > 8 or products * max(-scheme.qmin, scheme.qmax) * largest <= numerics.INT16_MAX
    return scheme if fits or scheme.dtype.bits <= int7.bits else scheme.with_(dtype=int7)


def narrowed_note(layers: int) -> str:
    """What the plan says of them."""
    are = f"the weights of {layers} layers were narrowed" if layers > 1 else "the weight of one layer was narrowed"
    return (
        f"{are} to [-64, 64]: x86 CPUs without VNNI add pairs of products in int16, and no pair can leave it now; "
        "preset 'w8a8' keeps 8 bits, exact too and slower"
    )


def _shape_and_groups(node: Node, graph: Graph) -> tuple[tuple[int, ...], int]:
    """Of the weight that the program's layer has, `(out, in / groups, *kernel)`: a transposed convolution has all phases, or
    is a layer a phase where it is depthwise (`truequant.transform.subpixel`).
    """
    read, written, name = graph.shape(node.reads[0]), graph.shape(node.writes[0]), node.call.op.name
    if name in LINEAR_OPS:
        return (written[-1], read[-1]), 1
    names = _TRANSPOSED if name.startswith("conv_transpose") else _ORDINARY
    given = dict(zip(names, node.call.args, strict=False)) | dict(node.call.kwargs)
    groups, kernel = given.get("groups", 1), given["weight"].shape[2:]
    if names is _ORDINARY:
        return (written[1], read[1] // groups, *kernel), groups
    stride, dilation = (_each(given.get(k, 1), len(kernel)) for k in ("stride", "dilation"))
    taps = [numerics.taps_of_a_phase(k, s, d) for k, s, d in zip(kernel, stride, dilation, strict=True)]
    each = written[1] == read[1] == groups  # one channel alone: a layer a phase
    return (written[1] * (1 if each else math.prod(stride)), read[1] // groups, *taps), groups


_ORDINARY = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


def _each(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    return (value,) * axes if isinstance(value, int) else (*value, *value[-1:] * (axes - len(value)))
