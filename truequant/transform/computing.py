"""Lowering of sites that compute new codes: one function for each action of the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as GraphNode
from torch.utils import _pytree as pytree

from truequant.errors import ConversionError
from truequant.fake import TRANSPOSED, RuntimeSite, affine_integers, as_layer, integers, layer_weight, norm_parameters, table_of
from truequant.integer import nodes as program_nodes
from truequant.integer.storage import storage
from truequant.planning import LINEAR_OPS
from truequant.planning.pooling import average_axes, pool_arguments, uneven
from truequant.transform import user_ops
from truequant.transform.constants import constants
from truequant.transform.contraction import contract, operands_of
from truequant.transform.float_linears import float_linear
from truequant.transform.lowering import Codes, Floats, Lowered, Lowering, sizes
from truequant.transform.resizing import resize
from truequant.transform.subpixel import into_space, sub_pixel, transposed_arguments


def _layer(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    source = low.input_codes(node, site)
    weight, bias = _parameters(low, node, site)
    with torch.no_grad():
        found = integers(site, weight, bias)
    output, lowest, highest = low.result(site)
    codes, bias_codes = found.weight.to(torch.int8).contiguous(), found.bias.to(torch.int32)
    scale = found.scale.float()
    if site.plan.op in LINEAR_OPS:
        low.emit(program_nodes.Linear(source.name, output.name, codes, scale, bias_codes, lowest, highest))
        return output
    n = weight.dim() - 2
    if site.plan.op in TRANSPOSED:
        return _transposed(low, node, source, output, (codes, scale, bias_codes), (lowest, highest))
    named = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), node.args, strict=False)) | dict(
        node.kwargs
    )
    stride, dilation = sizes(named.get("stride", 1), n), sizes(named.get("dilation", 1), n)
    padding = _padding(named.get("padding", 0), weight.shape[2:], dilation, n)
    groups: Any = named.get("groups", 1)
    low.emit(
        program_nodes.Conv(
            source.name, output.name, codes, scale, bias_codes, stride, padding, dilation, int(groups), lowest, highest
        )
    )
    return output


def _gridless(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    return float_linear(low, node, site, *_parameters(low, node, site))


def _parameters(low: Lowering, node: GraphNode, site: RuntimeSite) -> tuple[Tensor, Tensor | None]:
    owner: Any = site.owner
    if site.plan.leaf:
        return layer_weight(site.plan.op, owner), owner.bias
    named = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)

    def tensor(argument: Any) -> Tensor | None:
        if argument is None:
            return None
        if isinstance(argument, GraphNode) and isinstance(found := low.values.get(argument), Tensor):
            return found
        raise ConversionError(
            f"'{site.plan.name}': its weight is computed in the forward", got=str(argument), expected="a parameter or buffer"
        )

    weight = tensor(named["weight"])
    assert weight is not None
    if site.plan.op in TRANSPOSED:
        weight = as_layer(weight, int(transposed_arguments(node)["groups"]))
    return weight, tensor(named.get("bias"))


def _transposed(
    low: Lowering,
    node: GraphNode,
    source: Codes,
    output: Codes | Floats,
    tensors: tuple[Tensor, Tensor, Tensor],
    bounds: tuple[int, int],
) -> Lowered:
    """A transposed convolution as one convolution for all phases of its stride, whose channels then move into space."""
    found = transposed_arguments(node)
    form = sub_pixel(tensors[0], found["stride"], found["padding"], found["output_padding"], found["dilation"])
    phases = math.prod(found["stride"])
    scale = tensors[1].repeat_interleave(phases) if len(tensors[1]) > 1 else tensors[1]
    bias, groups = tensors[2].repeat_interleave(phases), int(found["groups"])
    n = len(found["stride"])
    if isinstance(output, Floats):
        raise ConversionError(
            f"'{output.name}': a transposed convolution without a quantizer behind it", fix="give it an output scheme"
        )
    cuts = [(axis + 2, begin, -end if end else None) for axis, (begin, end) in enumerate(form.crop) if begin or end]
    layer = program_nodes.Conv(
        source.name, output.name, form.weight, scale, bias, (1,) * n, form.padding, (1,) * n, groups, *bounds
    )  # fmt: skip
    current = low.codes(low.unique(f"{output.name}@whole"), output.grid) if cuts else output
    if phases > 1:
        into_space(low, current, layer, tuple(found["stride"]))
    else:
        low.emit(replace(layer, output=current.name))
    for position, (axis, begin, end) in enumerate(cuts, 1):
        target = output if position == len(cuts) else low.codes(low.unique(f"{output.name}@cut{axis - 2}"), output.grid)
        low.emit(program_nodes.Slice(current.name, target.name, axis, begin, end, 1))
        current = target
    return output


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int], n: int) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * n
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    return tuple((p, p) for p in sizes(padding, n))


def _affine(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """A map of channels alone: a depthwise convolution of one tap; of two axes, with an axis of space for its sake."""
    source, rank = low.input_codes(node, site, low.activation(node)), node.meta["val"].dim()
    with torch.no_grad():
        found = affine_integers(site)
    output, lowest, highest = low.result(site)
    n, channels = max(1, rank - 2), found.weight.shape[0]
    weight = found.weight.reshape(channels, 1, *(1,) * n).to(torch.int8)
    name = output.name
    if rank == 2:
        wide = low.codes(low.unique(f"{name}@wide"), source.grid)
        low.emit(program_nodes.Reshape(source.name, wide.name, (0, channels, 1)))
        source, name = wide, low.moved(low.unique(f"{name}@column"), output).name
    one = (1,) * n
    bias = found.bias.to(torch.int32)
    low.emit(
        program_nodes.Conv(
            source.name, name, weight, found.scale.float(), bias, one, ((0, 0),) * n, one, channels, lowest, highest
        )
    )
    if rank == 2:
        low.emit(program_nodes.Reshape(name, output.name, (0, channels)))
    return output


def _product(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """A matrix product; an einsum as one between transposed and reshaped codes."""
    left, right = (low.values[o] for o in operands_of(node))
    if not isinstance(left, Codes) or not isinstance(right, Codes):
        raise ConversionError(f"'{site.plan.name}' reads a value that is not quantized")
    output, lowest, highest = low.result(site)
    if node.target is not torch.ops.aten.einsum.default:
        low.emit(program_nodes.MatMul(left.name, right.name, output.name, lowest, highest))
        return output
    if isinstance(output, Codes):
        contract(low, node, (left, right), output, (lowest, highest))
    return output


def _elementwise(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    operands = list(node.all_input_nodes)
    if len(operands) == 1:  # x + x
        operands *= 2
    left, right = constants(low, node, site, operands)
    if not isinstance(left, Codes) or not isinstance(right, Codes):
        raise ConversionError(f"'{site.plan.name}' reads a value that is not quantized")
    output, lowest, highest = low.result(site)
    if site.plan.action == "sub":
        low.emit(program_nodes.Sub(left.name, right.name, output.name, lowest, highest, **_own_rule(site)))
        return output
    kind = program_nodes.Add if site.plan.action == "add" else program_nodes.Mul
    low.emit(kind(left.name, right.name, output.name, site.arithmetic, lowest, highest))
    return output


def _own_rule(site: RuntimeSite) -> dict[str, Any]:
    """The rule of a difference or an average where it is not the one that all other targets share."""
    return {"rule": site.arithmetic} if site.arithmetic == "xnnpack" else {}


def _table(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    if node.target is user_ops.CALL:
        return user_ops.table(low, node, site)
    source = low.input_codes(node, site)
    output, _, _ = low.result(site)
    # The exported op is what ran in evaluation, its constants included.
    target: Any = node.target
    args, kwargs = pytree.tree_map(
        lambda a: low.values.get(a) if isinstance(a, GraphNode) else a, (node.args, dict(node.kwargs))
    )
    with torch.no_grad():
        entries = table_of(site, target, args, kwargs)
    low.table(source, output, entries, site.plan.op)
    return output


def _lookup(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    table, rows = low.values[node.args[0]], low.values[node.args[1]]  # type: ignore[index]
    if not isinstance(table, Tensor) or not isinstance(rows, Floats) or site.emits is None:
        raise ConversionError(f"'{site.plan.name}' looks rows up in a table that the forward computes")
    output, lowest, highest = low.result(site)
    with torch.no_grad():
        entries = site.emits.codes(table).clamp(lowest, highest)
    stored = entries.to(storage(low.edges[output.name])).contiguous()
    low.emit(program_nodes.Lookup(rows.name, output.name, stored))
    return output


def _average(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    source = low.input_codes(node, site)
    output, lowest, highest = low.result(site)
    rank = node.all_input_nodes[0].meta["val"].dim()
    axes = average_axes(site.plan.op, node.args, node.kwargs, rank)
    assert axes is not None
    kept = node.meta["val"].dim() == rank
    low.emit(program_nodes.GlobalAverage(source.name, output.name, axes, kept, lowest, highest, **_own_rule(site)))
    return output


def _pool(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    source = low.input_codes(node, site)
    output, lowest, highest = low.result(site)
    before = [int(n) if isinstance(n, int) else 0 for n in node.all_input_nodes[0].meta["val"].shape]
    found = pool_arguments(site.plan.op, node.args, node.kwargs, before)
    assert found is not None
    kernel = found["kernel"]
    if uneven(found):
        padding = found["padding"]
        if found["count_include_pad"] and any(padding):
            padded = low.codes(low.unique(f"{output.name}@padded"), source.grid)
            low.emit(program_nodes.Pad(source.name, padded.name, tuple((p, p) for p in padding)))
            source, padding = padded, (0,) * len(padding)
        windows = kernel, found["stride"], padding, found["ceil_mode"]
        low.emit(program_nodes.AveragePool(source.name, output.name, *windows, site.arithmetic, lowest, highest))
        return output
    channels = int(node.meta["val"].shape[1])
    count = found["divisor_override"] or math.prod(kernel)
    low.emit(
        program_nodes.Conv(
            source.name,
            output.name,
            torch.ones(channels, 1, *kernel, dtype=torch.int8),
            torch.tensor([1.0 / count], dtype=torch.float32),
            torch.zeros(channels, dtype=torch.int32),
            found["stride"],
            tuple((p, p) for p in found["padding"]),
            (1,) * len(kernel),
            channels,
            lowest,
            highest,
        )
    )
    return output


def _normalize(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    """A norm; its gain and bias are those that evaluation read."""
    place = 0 if site.plan.operand is None else node.all_input_nodes.index(node.args[site.plan.operand])  # type: ignore[arg-type]
    source, rule = low.input_codes(node, site, place), site.plan.norm_rule
    assert rule is not None
    output, lowest, highest = low.result(site)

    def stored(parameter: Any) -> Tensor | None:
        if isinstance(parameter, GraphNode):
            parameter = low.values.get(parameter)
        if parameter is None:
            return None
        if not isinstance(parameter, Tensor):
            raise ConversionError(f"'{site.plan.name}': its gain or bias is computed in the forward")
        return parameter.detach().float().clone().contiguous()

    with torch.no_grad():
        _, gain, bias = norm_parameters(site, node.args, dict(node.kwargs))
        parameters = stored(gain), stored(bias)
    fields = rule.kind, rule.axes, rule.groups, rule.eps, rule.outside, rule.correction
    low.emit(program_nodes.Normalize(source.name, output.name, *fields, *parameters, lowest, highest))
    return output


def _clamp(low: Lowering, node: GraphNode, site: RuntimeSite) -> Lowered:
    source = low.values[node.all_input_nodes[0]]
    if site.plan.fused_into is not None:
        return source
    if site.emits is None:  # between floats
        return low.tables.island(low, node, low.unique(site.plan.name))
    source = low.input_codes(node, site)
    output, lowest, highest = low.result(site)
    low.emit(program_nodes.Clamp(source.name, output.name, lowest, highest))
    return output


ACTIONS: dict[str, Callable[[Lowering, GraphNode, RuntimeSite], Lowered]] = {
    "layer": _layer, "weight_only": _gridless, "dynamic": _gridless,
    "affine": _affine, "product": _product, "add": _elementwise, "sub": _elementwise, "mul": _elementwise,
    "lookup": _lookup,
    "table": _table, "average": _average, "pool": _pool, "resize": resize,
    "normalize": _normalize, "clamp": _clamp,
}  # fmt: skip
