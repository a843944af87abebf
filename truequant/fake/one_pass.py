"""An op and the quantizer behind it in one training pass over memory, by a compiled kernel.

Each function returns None, and has changed nothing, where the two must run apart: there is no kernel for these tensors, or a
hook, a recorder or a compiler wants to see what lies between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.modules import module as module_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from truequant import kernels, numerics
from truequant.fake.batch_statistics import NormCall
from truequant.fake.planned import PlannedSite
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.steps import Step
from truequant.planning import clamp_bounds

QUANTIZED_AT = "truequant_quantized_at"
"""Attribute of a tensor that went through the clip and the quantizer of a later site already: that site."""
_CLIPS = {"relu": kernels.RELU, "relu6": kernels.HARDTANH, "hardtanh": kernels.HARDTANH, "clamp": kernels.CLAMP}


def _clip_of(site: PlannedSite) -> kernels.Clip:
    """How the kernels clip at a site."""
    plan = site.plan
    if plan.action != "clamp":
        return kernels.NO_CLIP
    low = -math.inf if plan.minimum is None else plan.minimum
    return _CLIPS[plan.op], low, math.inf if plan.maximum is None else plan.maximum


def _by_kernel(quantizer: FakeQuantize, x: Tensor | list[Tensor], clip: kernels.Clip) -> Callable[[ModuleType, Step], Any]:
    """How a kernel clips and quantizes `x`."""
    return lambda kernel, step: kernel.quantize(x, None, quantizer.__dict__, step, *clip)


def called(quantizer: FakeQuantize, x: Tensor) -> Tensor:
    """`quantizer(x)`."""
    y = None if hooks_everywhere() else quantizer.in_pass(_by_kernel(quantizer, x, kernels.NO_CLIP))
    result: Tensor = quantizer(x) if y is None else y
    return result


def quantized_in_place(quantizer: FakeQuantize, x: list[Tensor]) -> Tensor | None:
    """The quantized tensor of a list, in its own memory where nothing but the list holds it."""
    return quantizer.in_pass(_by_kernel(quantizer, x, kernels.NO_CLIP))


def finished(site: PlannedSite, result: list[Any]) -> Any:
    """As `site.finish`, for a list with what an op has just returned: a quantizer may write into what nothing else holds."""
    if site.quantizer is not None and isinstance(result[0], Tensor):
        y = quantized_in_place(site.quantizer, result)
        if y is not None:
            return y
    return site.finish(result.pop())


def clamped(site: PlannedSite, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The quantized result of a clamp."""
    plan, x = site.plan, args[0] if args else None
    if not isinstance(x, Tensor) or site.quantizer is None:
        return None
    if not plan.leaf and plan.op != "relu" and clamp_bounds(plan.op, tuple(args), kwargs) != (plan.minimum, plan.maximum):
        return None
    quantizer, clip = site.quantizer, _clip_of(site)
    if torch.compiler.is_compiling():  # Inductor makes one pass of both; the clip keeps a mask, as the kernels do
        return quantizer(kernels.clipped(x, clip)) if torch.is_grad_enabled() else None
    if quantizer.shift is not None:
        return quantizer.learned_pass(x, clip)
    return quantizer.in_pass(_by_kernel(quantizer, x, clip))


def added(site: PlannedSite, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The quantized sum of two activations, clipped where a clamp alone reads it."""
    end = site.quantized_at
    if kwargs or len(args) != 2 or end is None or end.quantizer is None:
        return None
    if not (isinstance(args[0], Tensor) and isinstance(args[1], Tensor)):
        return None
    quantizer, clip = end.quantizer, _clip_of(end)

    def compute(kernel: ModuleType, step: Step) -> Any:
        return kernel.quantize(*_in_one_layout(*args), quantizer.__dict__, step, *clip)

    return _marked_done(site, quantizer.in_pass(compute))


def _in_one_layout(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Operands of one shape as one pass reads them: in the layout of the first where that is a memory format of torch's.

    Else, where a permuted operand meets a contiguous one, the sum is contiguous: a shortcut that began as a view of a
    convolution's result is permuted once, and not again at every sum, LayerNorm and gradient further on.
    """
    if a.shape != b.shape or a.stride() == b.stride():
        return a, b
    if a.is_contiguous():
        return a, b.contiguous()
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        return a, b.contiguous(memory_format=torch.channels_last)
    return (a.contiguous(), b) if b.is_contiguous() else (a, b)


def normalized(site: PlannedSite, x: Tensor, made: Callable[[], NormCall]) -> Tensor | None:
    """The quantized result of a BatchNorm of `x` in training, clipped where a clamp alone reads it.

    made: the call, with the bias that is meant.
    """
    end = site.quantized_at
    if end is None or end.quantizer is None or _hooked(site.owner):
        return None
    quantizer, clip = end.quantizer, _clip_of(end)
    if x.dtype != torch.float32:
        return None

    call: NormCall | None = None

    def compute(kernel: ModuleType, step: Step) -> Any:
        nonlocal call
        call = made() if call is None else call  # the first step comes here twice
        if isinstance(call.share, Tensor):
            return NotImplemented
        arguments = call.x, call.weight, call.bias, call.mean, call.var, call.eps, call.share
        return kernel.quantize_norm(*arguments, quantizer.__dict__, step, *clip)

    return _marked_done(site, quantizer.in_pass(compute))


def shifted_bias(layer: PlannedSite, dtype: torch.dtype) -> Tensor | None:
    """`layer.shifted_bias` of the layer that a BatchNorm in training follows."""
    norm, quantizer, reads, (weight, bias) = cast(Any, layer.norm), layer.weight, layer.reads[0], layer.operands()
    kernel = None if torch.compiler.is_compiling() or not isinstance(norm, _BatchNorm) else kernels.compiled()
    if (
        kernel is not None
        and quantizer is not None
        and reads is not None
        and dtype == torch.float32
        and layer.own_bias
        and quantizer.step() is not None
    ):
        y = kernel.shifted_bias(
            bias, norm._buffers, norm._parameters, norm.eps, reads.__dict__, quantizer.__dict__,
            numerics.folds_free(quantizer.scheme),
        )  # fmt: skip
        if y is not NotImplemented:
            return y  # type: ignore[no-any-return]
    return layer.shifted_bias(weight, bias, dtype)


def _marked_done(site: PlannedSite, y: Tensor | None) -> Tensor | None:
    if y is not None and site.quantized_at is not site:
        setattr(y, QUANTIZED_AT, site.quantized_at)
    return y


def hooks_everywhere() -> bool:
    """Whether a hook sees every module that is called, quantizers too."""
    hooks = module_hooks
    return bool(
        hooks._global_forward_hooks or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks or hooks._global_backward_pre_hooks
    )  # fmt: skip


def _hooked(module: Any) -> bool:
    """Whether a hook sees what the module returns."""
    return bool(
        module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
        or module_hooks._global_forward_hooks or module_hooks._global_backward_hooks
    )  # fmt: skip
