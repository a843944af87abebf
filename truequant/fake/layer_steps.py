"""A layer in an ordinary step of training: weight and bias reach their grids by one call of a compiled kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from truequant import kernels
from truequant.fake import one_pass
from truequant.fake.clock import local
from truequant.fake.products import product
from truequant.fake.sites import RuntimeSite

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def trained(site: RuntimeSite, linear: Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """What `site.run_layer` does there; None, and nothing done, where it is another step or somebody wants to see it."""
    quantizer = site.weight
    if torch.compiler.is_compiling() or quantizer is None or (kernel := kernels.compiled()) is None:
        return None
    if local.marking is not None or not site.owner.training or one_pass.hooks_everywhere():
        return None
    if site.plan.affine is not None and quantizer.tied:
        return None
    reads = site.reads[0] if site.norm is None and site.own_bias else None
    if (step := quantizer.step()) is None:
        return None
    operands = kernel.layer_operands(weight, bias, quantizer.__dict__, step, None if reads is None else reads.__dict__)
    if operands is NotImplemented:
        return None
    sums = (site.reads[0], quantizer) if quantizer.sums_codes else ()
    result: Tensor = one_pass.finished(site, [product(linear, x, *operands, *sums)])
    return result
