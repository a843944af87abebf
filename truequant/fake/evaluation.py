"""Evaluation on codes: integers carried by float tensors, exact below 2^24 in float32 and below 2^53 in float64.

Each function returns the dequantized result of its site, float32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from truequant import kernels, numerics
from truequant.fake import codes as by_kernel
from truequant.fake.clock import local
from truequant.fake.planned import PlannedSite
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.resizing import interpolated_sums, interpolation_weights
from truequant.numerics import Qparams
from truequant.numerics.pooling import window_average
from truequant.planning import LINEAR_OPS, NORM_OPS, linear_factors, norm_operands
from truequant.planning.pooling import average_axes, pool_arguments, uneven
from truequant.schemes import PerChannel, QuantScheme, int8

Compute = Callable[[PlannedSite, Callable[..., Any], Sequence[Any], dict[str, Any]], Tensor]


@contextlib.contextmanager
def exact_sums(device: str) -> Iterator[None]:
    """No autocast, and none of the kernels that are not plain sums of products."""
    if torch.compiler.is_compiling():
        with torch.autocast(device, enabled=False):
            yield
        return
    with torch.autocast(device, enabled=False), torch.backends.nnpack.flags(enabled=False):
        if device == "cuda":
            with torch.backends.cudnn.flags(enabled=False):
                yield
        else:
            yield


def params(quantizer: FakeQuantize) -> Qparams:
    """Scale and zero point in force."""
    return quantizer.effective_scale(), quantizer.zero_point


def site_bounds(site: PlannedSite, emits: FakeQuantize) -> tuple[Tensor, Tensor]:
    """The codes between which the result is clamped: those of the grid, moved by a fused clamp."""
    scale, zero_point = params(emits)
    return numerics.clamp_codes(site.plan.minimum, site.plan.maximum, scale, zero_point, emits.scheme.qmin, emits.scheme.qmax)


def result(site: PlannedSite, codes: Tensor) -> Tensor:
    """The values of the codes that a site writes."""
    assert site.emits is not None
    if local.recorder is not None:
        local.recorder(site.plan.name, codes)
    return numerics.dequantize(codes, written_scale(site.emits, site.plan.factor), site.emits.zero_point)


def written_scale(emits: FakeQuantize, factor: float | None) -> Tensor:
    """The scale of codes that are multiplied by a factor before their quantizer: their values are less by it."""
    scale = emits.effective_scale()
    return scale if factor is None else (scale.double() / factor).float()


def integers(site: PlannedSite, weight: Tensor, bias: Tensor | None) -> numerics.IntegerWeights:
    """Weight codes, scale and bias codes of a layer, its BatchNorm folded in."""
    assert site.weight is not None
    assert site.reads[0] is not None
    norm = site.normalization() if site.folds else None
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    factor = norm.factor() if norm is not None else None
    scale, chosen = site.weight.scale_of(weight, factor).detach(), site.weight.chosen_codes(weight, factor)
    return numerics.fold(weight, scale, site.weight.scheme, bias, norm, site.reads[0].effective_scale().detach(), chosen)


def _kept_integers(site: PlannedSite, weight: Tensor, bias: Tensor | None) -> numerics.IntegerWeights:
    """The same, made once for what they are made of."""
    quantizer, reads = site.weight, site.reads[0]
    assert quantizer is not None
    assert reads is not None
    if quantizer.scheme.dtype.bits > 8 or quantizer.chooses_codes():
        return integers(site, weight, bias)
    norm = site.normalization() if site.folds else None
    parts = () if norm is None else (norm.mean, norm.var, norm.gamma, norm.beta)
    made_of = (weight, bias, reads.effective_scale(), *parts, *quantizer.parameters(), *quantizer.buffers())
    state = (quantizer.follows_weight(), None if norm is None else norm.eps)
    return site.folded.of(made_of, state, lambda: integers(site, weight, bias))


def _plain_products() -> bool:
    """Whether float32 products keep all bits of their factors."""
    return torch.get_float32_matmul_precision() == "highest"


# What torch.compiler.assume_constant_result sets; calling it would import all of torch._dynamo with `import truequant`.
_plain_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _carrier(weights: numerics.IntegerWeights, reads: FakeQuantize) -> torch.dtype:
    """float32 where every sum stays exact in it."""
    if not _plain_products():
        return torch.float64
    if torch.compiler.is_compiling():
        per_channel = weights.weight.numel() // max(1, weights.weight.shape[0])
        worst = per_channel * max(1, reads.scheme.qmax - reads.scheme.qmin) * 128
        return torch.float32 if worst < numerics.FLOAT32_EXACT else torch.float64
    bound = numerics.accumulator_bound(weights.weight, None, reads.zero_point, reads.scheme.qmin, reads.scheme.qmax)
    return torch.float32 if float(bound) < numerics.FLOAT32_EXACT else torch.float64


def layer(
    site: PlannedSite, linear: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """acc = sum((xq - zx) * wq) + bq, requantized to the site's grid; float32(acc) * float32(sx * sw) without one."""
    reads = site.reads[0]
    assert reads is not None
    weights = _kept_integers(site, weight, bias)
    if site.emits is not None and not torch.compiler.is_compiling():
        y = by_kernel.layer(site, x, weights, reads, site.emits, site_bounds(site, site.emits))
        if y is not None:
            return y
    carrier = _carrier(weights, reads)
    with exact_sums(x.device.type):
        whole = numerics.recover(x.detach(), reads.effective_scale(), reads.zero_point)
        acc = torch.round(linear(whole.to(carrier), weights.weight.to(carrier), None)).double()
        acc = acc.contiguous()  # as the program's: the order of a float island's sums may depend on what it reads
        axis = acc.dim() - 1 if site.plan.op in LINEAR_OPS else 1
        acc = acc + numerics.along_axis(weights.bias, axis, acc.dim())
        scale = reads.effective_scale() * weights.scale
        if site.emits is None:
            return acc.float() * numerics.channel_axis(scale, acc.dim(), axis)
        factor = numerics.channel_axis(
            numerics.multiplier(reads.effective_scale(), weights.scale, site.emits.effective_scale()), acc.dim(), axis
        )
        return result(site, numerics.requantize(acc, factor, site.emits.zero_point, *site_bounds(site, site.emits)))


ONES = QuantScheme(int8, PerChannel(0))
"""The scheme of the weights of a BatchNorm that stands alone: all of them are 1 before its factor goes into the scale."""


def affine_integers(site: PlannedSite) -> numerics.IntegerWeights:
    """Weight codes `(C, 1)`, scale and bias codes of a map of channels that stands alone."""
    assert site.reads[0] is not None
    norm = site.normalization()
    ones = torch.ones(len(norm.mean), 1, device=norm.mean.device)
    scale = (ones[:, 0] / ONES.qmax).float()
    return numerics.fold(ones, scale, ONES, None, norm, site.reads[0].effective_scale().detach())


def _affine(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """acc = (xq - zx) * wq + bq, a weight and a bias for each channel, requantized."""
    x = args[site.plan.operand or 0] if args else kwargs["input"]
    reads, emits = site.reads[0], site.emits
    assert reads is not None
    assert emits is not None
    weights = affine_integers(site)
    codes = numerics.recover(x.detach(), reads.effective_scale(), reads.zero_point).double()
    rank = codes.dim()
    acc = codes * numerics.along_axis(weights.weight[:, 0].double(), 1, rank) + numerics.along_axis(weights.bias, 1, rank)
    factor = numerics.multiplier(reads.effective_scale(), weights.scale, emits.effective_scale())
    bounds = site_bounds(site, emits)
    return result(site, numerics.requantize(acc, numerics.channel_axis(factor, rank, 1), emits.zero_point, *bounds))


def _codes(site: PlannedSite, position: int, x: Tensor) -> Tensor:
    grid = site.reads[position]
    assert grid is not None
    return numerics.recover(x.detach(), grid.effective_scale(), grid.zero_point) + grid.zero_point


def _elementwise(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Add, sub or mul, by the named rule of the target."""
    left, right = (t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
    assert site.emits is not None
    assert site.reads[0] is not None
    assert site.reads[1] is not None
    grids = params(site.reads[0]), params(site.reads[1]), params(site.emits)
    bounds = site_bounds(site, site.emits)
    if site.plan.action == "add" and site.arithmetic == "onnxruntime":
        y = by_kernel.added(site, left, right, grids, bounds)
        if y is not None:
            return y
    codes = _codes(site, 0, left), _codes(site, 1, right)
    if site.plan.action == "sub":
        return result(site, numerics.sub(*codes, *grids, *bounds, site.arithmetic))
    rule = numerics.add if site.plan.action == "add" else numerics.mul
    return result(site, rule(*codes, *grids, *bounds, site.arithmetic))


_PRODUCTS_OF_TWO = ("matmul", "bmm")


def _narrow(site: PlannedSite) -> bool:
    """Whether all that is read has codes of a byte."""
    return all(grid is not None and grid.scheme.dtype.bits <= 8 for grid in site.reads)


def _product(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """acc = sum((aq - za) * (bq - zb)) of two activations, requantized."""
    left, right = site.reads
    assert left is not None
    assert right is not None
    assert site.emits is not None
    leaves, structure = pytree.tree_flatten(tuple(args))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for i, grid in zip(places, (left, right), strict=True):
        leaves[i] = numerics.recover(leaves[i].detach(), grid.effective_scale(), grid.zero_point)
    acc = (
        kernels.products_of_codes(*leaves) if len(leaves) == 2 and site.plan.op in _PRODUCTS_OF_TWO and _narrow(site) else None
    )
    if acc is None:
        leaves = [leaf.double() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        with exact_sums(site.emits.scale.device.type):
            acc = torch.round(function(*pytree.tree_unflatten(leaves, structure)))
    written = written_scale(site.emits, site.plan.factor)
    factor = numerics.multiplier(left.effective_scale(), right.effective_scale(), written)
    return result(site, numerics.requantize(acc, factor, site.emits.zero_point, *site_bounds(site, site.emits)))


def _lookup(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Rows of a table: their codes are those of the table's own values."""
    assert site.emits is not None
    low, high = site_bounds(site, site.emits)
    return result(site, torch.clamp(site.emits.codes(function(*args, **kwargs)), low, high))


def table_of(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Codes of the result for each code that is read."""
    reads, emits = site.reads[0], site.emits
    assert reads is not None
    assert emits is not None
    numbers = [_number(a) for a in args[1:]]
    rest = {k: _number(v) for k, v in kwargs.items() if k not in ("inplace", "input")}
    low, high = site_bounds(site, emits)

    def values(x: Tensor) -> Tensor:
        result: Tensor = function(x, *numbers, **rest)
        return result

    return numerics.table(values, params(reads), (reads.scheme.qmin, reads.scheme.qmax), params(emits), low.cpu(), high.cpu())


def _number(argument: Any) -> Any:
    """A tensor of one number (a learned slope, a scale) in the precision of tables."""
    return argument.detach().double().cpu() if isinstance(argument, Tensor) else argument


def _table(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    x = args[0] if args else kwargs["input"]
    entries = table_of(site, function, args, kwargs).to(x.device)
    reads = site.reads[0]
    assert reads is not None
    return result(site, entries[(_codes(site, 0, x) - reads.scheme.qmin).long()])


def _average(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Integer sum over whole axes, then the rule of GlobalAveragePool."""
    x = args[0] if args else kwargs["input"]
    reads, emits = site.reads[0], site.emits
    assert reads is not None
    assert emits is not None
    axes = average_axes(site.plan.op, args, kwargs, x.dim())
    assert axes is not None
    keepdim = site.plan.op != "mean" or bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
    acc = numerics.recover(x.detach(), reads.effective_scale(), reads.zero_point).double().sum(axes, keepdim=keepdim)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    factor = numerics.global_average_factor(reads.effective_scale(), emits.effective_scale(), count, site.arithmetic)
    return result(site, numerics.requantize(acc, factor, emits.zero_point, *site_bounds(site, emits)))


def _pool(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Average over windows of n elements: a depthwise integer layer of ones with `sw = float32(1 / n)`."""
    x = args[0] if args else kwargs["input"]
    reads, emits = site.reads[0], site.emits
    assert reads is not None
    assert emits is not None
    found = pool_arguments(site.plan.op, args, kwargs, x.shape)
    assert found is not None
    if uneven(found):
        return _windows(site, x, found)
    count = found["divisor_override"] or math.prod(found["kernel"])
    codes = numerics.recover(x.detach(), reads.effective_scale(), reads.zero_point).double()
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(found["kernel"]) - 1]
    acc = torch.round(pool(codes, found["kernel"], found["stride"], found["padding"]) * math.prod(found["kernel"]))
    weight_scale = torch.tensor(1.0 / count, dtype=torch.float32, device=x.device)
    factor = numerics.multiplier(reads.effective_scale(), weight_scale, emits.effective_scale())
    return result(site, numerics.requantize(acc, factor, emits.zero_point, *site_bounds(site, emits)))


def _resize(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Linear interpolation: an integer layer of fixed weights."""
    x = args[0] if args else kwargs["input"]
    reads, emits = site.reads[0], site.emits
    assert reads is not None
    assert emits is not None
    factors = linear_factors(args, kwargs, x.shape)
    assert factors is not None
    with exact_sums(x.device.type):
        acc = interpolated_sums(numerics.recover(x.detach(), reads.effective_scale(), reads.zero_point), factors)
    weight_scale = torch.tensor(interpolation_weights(factors, 1)[1], dtype=torch.float32, device=x.device)
    factor = numerics.multiplier(reads.effective_scale(), weight_scale, emits.effective_scale())
    return result(site, numerics.requantize(acc, factor, emits.zero_point, *site_bounds(site, emits)))


def _windows(site: PlannedSite, x: Tensor, found: dict[str, Any]) -> Tensor:
    """Average over windows that do not all hold the same number of elements; padding that counts is real zeros."""
    reads, emits = site.reads[0], site.emits
    assert reads is not None
    assert emits is not None
    codes, padding = _codes(site, 0, x), found["padding"]
    if found["count_include_pad"]:
        codes = F.pad(codes - reads.zero_point, [p for p in reversed(padding) for _ in range(2)]) + reads.zero_point
        padding = (0,) * len(padding)
    windows = found["kernel"], found["stride"], padding, found["ceil_mode"]
    bounds = site_bounds(site, emits)
    return result(site, window_average(codes, params(reads), params(emits), *windows, *bounds, site.arithmetic))


def norm_parameters(site: PlannedSite, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """What a norm reads, its gain and its bias: the arguments of its function, or what the plan computes with it."""
    if site.plan.op in NORM_OPS:
        given = norm_operands(site.plan.op, args, kwargs)
        return given["input"], given["weight"], given["bias"]
    affine = site.plan.affine
    behind = site.normalization() if affine is not None else None
    operand = args[site.plan.operand or 0]
    return operand, None if behind is None else behind.gamma, None if behind is None else behind.beta


def _normalize(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Rows by their own deviation: sums of integers, then float32 step by step. Not rounded where no grid follows."""
    x, gain, bias = norm_parameters(site, args, kwargs)
    reads, emits, rule = site.reads[0], site.emits, site.plan.norm_rule
    assert reads is not None
    assert rule is not None
    sx = reads.effective_scale()
    c, reach = numerics.recover(x.detach(), sx, reads.zero_point), reads.scheme.qmax - reads.scheme.qmin
    sy = torch.ones_like(sx) if emits is None else emits.effective_scale()
    gain, bias = (None if t is None else t.detach() for t in (gain, bias))
    y = numerics.normalized(c, rule, gain, bias, sx, sy, reach)
    return y if emits is None else result(site, numerics.norm_codes(y, emits.zero_point, *site_bounds(site, emits)))


def _clamp(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """A clamp that is computed with nothing before it: on codes, keeping scale and zero point."""
    x = args[0] if args else kwargs["input"]
    if site.plan.fused_into is not None:
        clamped: Tensor = function(*args, **kwargs)
        return clamped
    assert site.emits is not None
    low, high = site_bounds(site, site.emits)
    return result(site, torch.clamp(_codes(site, 0, x), low, high))


COMPUTES: dict[str, Compute] = {
    "affine": _affine, "product": _product, "add": _elementwise, "sub": _elementwise, "mul": _elementwise, "lookup": _lookup,
    "table": _table, "average": _average, "pool": _pool, "resize": _resize, "normalize": _normalize,
    "clamp": _clamp,
}  # fmt: skip
