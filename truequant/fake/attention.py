"""Softmax and attention at a call site: floats between quantizers in training, tables and exact sums in evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from truequant import numerics
from truequant.fake.clock import local
from truequant.fake.evaluation import Compute, exact_sums, params, result, site_bounds, written_scale
from truequant.fake.planned import PlannedSite
from truequant.fake.quantizers import FakeQuantize
from truequant.kernels import products_of_codes
from truequant.numerics import BYTE
from truequant.planning import HIDES, attention_arguments

Arguments = dict[str, Any]


# -- masks -------------------------------------------------------------------------------------------------------------
def masked(site: PlannedSite, args: Sequence[Any], kwargs: Arguments) -> Tensor:
    """The scores, minus infinity where a mask hides a place: however far below 0 the model's own mask reaches."""
    scores: Tensor = args[site.plan.operand or 0]
    return torch.where(_shown(site, args, kwargs), scores, -math.inf)


def _shown(site: PlannedSite, args: Sequence[Any], kwargs: Arguments) -> Tensor:
    """Where the places are that the mask of this call shows."""
    operand = site.plan.operand or 0
    if site.plan.op == "where":
        return args[1 - operand]  # type: ignore[no-any-return]
    mask: Tensor = kwargs["mask"] if "mask" in kwargs else args[1 - operand]
    return ~mask if mask.dtype == torch.bool else shown_by(mask)


def shown_by(mask: Tensor) -> Tensor:
    """Where a mask that is given to attention shows places: yes, or a number that does not hide."""
    return mask if mask.dtype == torch.bool else mask > HIDES


def _added(site: PlannedSite, args: Sequence[Any]) -> Tensor:
    """The bias of a sum of scores and a bias."""
    bias: Tensor = args[1 - (site.plan.operand or 0)]
    return bias


def biased_in_training(site: PlannedSite, function: Callable[..., Tensor], args: Sequence[Any]) -> Tensor:
    """Scores and their bias, minus infinity where the bias hides a place."""
    y = function(*args)
    return torch.where(shown_by(_added(site, args)), y, -math.inf) if site.plan.bias == "hiding" else y


# -- training ----------------------------------------------------------------------------------------------------------
def softmax_in_training(site: PlannedSite, function: Callable[..., Tensor], args: Sequence[Any], kwargs: Arguments) -> Tensor:
    """Softmax of scores; a row that sees nothing gives zeros. Weights are rounded as `numerics.attention` has them."""
    if site.plan.action == "weights":
        return _trained_weights(site, args[0] if args else kwargs["input"], masked=site.masked)
    if not site.masked:
        return function(*args, **kwargs)
    scores, rest = args[0] if args else kwargs["input"], {k: v for k, v in kwargs.items() if k != "input"}
    return _seeing(scores, lambda seen: function(seen, *args[1:], **rest))


def _seeing(scores: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """Weights of rows, zeros where a row sees nothing."""
    blind = torch.isneginf(scores.amax(-1, keepdim=True))
    return torch.where(blind, 0.0, weigh(torch.where(blind, 0.0, scores)))


def _trained_weights(site: PlannedSite, scores: Tensor, *, masked: bool) -> Tensor:
    """Softmax over the last axis as evaluation rounds it, straight through; while calibrating as it is."""

    def weigh(seen: Tensor) -> Tensor:
        return torch.softmax(seen, -1) if site.clock.calibrating else _RoundedSoftmax.apply(seen)  # type: ignore[no-untyped-call]

    return _seeing(scores, weigh) if masked else weigh(scores)


class _RoundedSoftmax(torch.autograd.Function):
    """Weights in bytes relative to the largest of their row, over the sum of those.

    The gradient is that of a softmax with these weights, so that they alone are kept for it.
    """

    @staticmethod
    def forward(scores: Tensor) -> Tensor:
        weights = _bytes(torch.softmax(scores, -1))
        return weights.div_(weights.sum(-1, keepdim=True)).to(scores.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weights,), (gradient,) = ctx.saved_tensors, gradients
        return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


def _bytes(weights: Tensor) -> Tensor:
    """The exponentials, relative to the largest of the row, that weights were divided from."""
    largest = weights.amax(-1, keepdim=True).float()
    return (weights.float() / torch.where(largest > 0, largest, 1.0)).mul_(BYTE).round_()


def attention_in_training(site: PlannedSite, args: Sequence[Any], kwargs: Arguments) -> Tensor:
    """Attention in one call, written out, with its scores quantized."""
    given = attention_arguments(args, kwargs)
    q, k, v = _heads(given)
    scores = (q * attention_scale(given)) @ k.transpose(-2, -1)
    shown = _seen(site, given, scores)
    if site.plan.bias is not None:
        scores = scores + given["attn_mask"]
    quantizer = site.scores
    assert quantizer is not None
    if shown is not None:
        scores = torch.where(shown, scores, -math.inf)
    quantizer.masked = shown is not None
    scores = quantizer(scores)
    weights, dropout = _trained_weights(site, scores, masked=shown is not None), given["dropout_p"]
    return (F.dropout(weights, dropout) if dropout else weights) @ v


def _heads(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, those of a group of heads repeated for each of them."""
    q, k, v = given["query"], given["key"], given["value"]
    if given["enable_gqa"] and q.shape[-3] != k.shape[-3]:
        times = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(times, -3), v.repeat_interleave(times, -3)
    return q, k, v


def attention_scale(given: Arguments) -> float:
    """By what the products of queries and keys are multiplied."""
    scale = given["scale"]
    return 1.0 / math.sqrt(given["query"].shape[-1]) if scale is None else float(scale)


def _seen(site: PlannedSite, given: Arguments, scores: Tensor) -> Tensor | None:
    """Where places are seen; None where all are."""
    mask = None if site.plan.bias == "finite" else given["attn_mask"]
    shown = None if mask is None else shown_by(mask)
    if given["is_causal"]:
        below = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        shown = below if shown is None else shown & below
    return shown


# -- evaluation --------------------------------------------------------------------------------------------------------
def byte_table(grid: FakeQuantize) -> Tensor:
    """The exponentials of scores on a grid, in bytes."""
    return numerics.exponentials(grid.effective_scale(), grid.scheme.qmax + 1, BYTE).to(torch.uint8)


def wide_table(grid: FakeQuantize, bits: int) -> Tensor:
    """The same up to `2^bits`, for a softmax that is an edge."""
    return numerics.exponentials(grid.effective_scale(), grid.scheme.qmax + 1, 2**bits).to(torch.int32)


def _codes(grid: FakeQuantize, scores: Tensor, masked: bool) -> tuple[Tensor, Tensor | None]:
    """Codes of scores, int32, and the bytes of their mask."""
    scores = scores.detach()
    hidden = torch.isneginf(scores) if masked else None
    if hidden is not None:
        scores = torch.where(hidden, 0.0, scores)
    codes = numerics.recover(scores, *params(grid)) + grid.zero_point
    return codes.int(), None if hidden is None else (~hidden).int() * BYTE


def _weights(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: Arguments) -> Tensor:
    """Exponentials in bytes over the sum of their row, from which a product behind takes both again."""
    grid = site.reads[0]
    assert grid is not None
    raised = numerics.raised(*_codes(grid, args[0] if args else kwargs["input"], site.masked), byte_table(grid))
    return raised.float() / numerics.row_sums(raised, BYTE)


def _softmax(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: Arguments) -> Tensor:
    """Codes of a softmax along any axis."""
    grid, emits, bits = site.reads[0], site.emits, site.plan.bits
    assert grid is not None
    assert emits is not None
    assert bits is not None
    scores = args[0] if args else kwargs["input"]
    axis = kwargs["dim"] if "dim" in kwargs else args[1]
    codes, shown = _codes(grid, scores.movedim(axis, -1), site.masked)
    raised = numerics.raised(codes, shown, wide_table(grid, bits))
    sums = numerics.row_sums(raised, 2**bits)
    found = numerics.softmax(raised, sums, *params(emits), *site_bounds(site, emits))
    return result(site, found.movedim(-1, axis))


def _attend(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: Arguments) -> Tensor:
    """Weights times values: exact sums of bytes and codes, divided by the sum of the bytes."""
    *equation, weights, values = args
    grid = site.reads[1]
    assert grid is not None
    raised = _bytes(weights.detach())
    centred = numerics.recover(values.detach(), *params(grid))
    if not equation:
        return _attended(site, _sums(raised, centred), raised, grid)
    with exact_sums(weights.device.type):
        acc = torch.round(function(*equation, raised.double(), centred.double()))
    return _attended(site, acc, raised, grid)


def _attended(site: PlannedSite, acc: Tensor, raised: Tensor, values: FakeQuantize) -> Tensor:
    emits = site.emits
    assert emits is not None
    scale, zero_point = params(emits)
    sums = numerics.row_sums(raised, BYTE)
    bounds = site_bounds(site, emits)
    return result(site, numerics.attended(acc, sums, values.effective_scale(), scale, zero_point, *bounds))


def _attention(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: Arguments) -> Tensor:
    """Product, softmax and product of one call."""
    given = attention_arguments(args, kwargs)
    grids, scores = site.reads, site.scores
    assert scores is not None
    names = ("query", "key", "value")
    centred = dict(given)
    for name, grid in zip(names, grids, strict=True):
        assert grid is not None
        centred[name] = numerics.recover(given[name].detach(), *params(grid))
    q, k, v = _heads(centred)
    assert grids[0] is not None
    assert grids[1] is not None
    assert grids[2] is not None
    acc = _sums(q, k.transpose(-2, -1))
    scales = grids[0].effective_scale(), grids[1].effective_scale()
    ends = scores.scheme.qmin, scores.scheme.qmax
    if site.plan.bias is None:
        factor = numerics.multiplier(*scales, written_scale(scores, attention_scale(given)))
        codes = numerics.requantize(acc, factor, scores.zero_point, *ends)
    else:
        values = numerics.product_values(acc, *scales, attention_scale(given))
        codes = numerics.quantize(values + given["attn_mask"].detach().float(), *params(scores), *ends)
    if local.recorder is not None:
        local.recorder(f"{site.plan.name}.scores", codes)
    seen = _seen(site, given, codes)
    raised = numerics.raised(codes.int(), None if seen is None else seen.int() * BYTE, byte_table(scores))
    return _attended(site, _sums(raised, v), raised, grids[2])


def _biased(site: PlannedSite, function: Callable[..., Any], args: Sequence[Any], kwargs: Arguments) -> Tensor:
    """Codes of scores and their bias: one float32 sum, quantized. What the bias hides stays minus infinity."""
    emits, bias = site.emits, _added(site, args).detach().float()
    assert emits is not None
    values = args[site.plan.operand or 0].detach().float() + bias
    y = result(site, numerics.quantize(values, *params(emits), *site_bounds(site, emits)))
    return torch.where(shown_by(bias), y, -math.inf) if site.plan.bias == "hiding" else y


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """Products of codes of a byte less their zero points, summed exactly."""
    found = products_of_codes(a, b)
    if found is not None:
        return found
    with exact_sums(a.device.type):
        return torch.round(a.double() @ b.double())


COMPUTES: dict[str, Compute] = {
    "softmax": _softmax,
    "weights": _weights,
    "attend": _attend,
    "attention": _attention,
    "biased": _biased,
}
