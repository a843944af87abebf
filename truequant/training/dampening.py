"""Oscillation dampening: a term of the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from truequant import numerics
from truequant.fake import QATModuleWrapper, RuntimeSite, outermost

WIDEST = 4
"""Bits up to which weights are dampened: wider steps are too small to oscillate over."""


def oscillation_dampening(model: nn.Module) -> Tensor:
    """A term that draws weights to the middle of their codes (Nagel et al. 2022, section 4.2), to be added to the loss.

        sum over weights of at most 4 bits of (sg[q(w)] - clip(w, s * qmin, s * qmax))^2

    The limits of the clip are constants, so that scales are not trained by it, and clipped weights are not either. Multiply it
    by a strength that grows along half a cosine from 0 to about 0.1. Looking at it counts as no step: nothing is tracked.

        loss = F.cross_entropy(qat(x), y) + strength * tq.training.oscillation_dampening(qat)

    Raises `StateError` for a float model.
    """
    terms = [_term(site) for site in _sites(outermost(model)) if _dampened(site)]
    if not terms:
        return next(model.parameters()).new_zeros(())
    return torch.stack(terms).sum()


def _sites(model: nn.Module) -> list[RuntimeSite]:
    """One site for each weight quantizer of a module."""
    found: dict[int, RuntimeSite] = {}
    for module in model.modules():
        if isinstance(module, QATModuleWrapper) and module.binding.leaf:
            for site in module.binding.leaf.values():
                if site.weight is not None and site.own_weight() is not None:
                    found.setdefault(id(site.weight), site)
    return list(found.values())


def _dampened(site: RuntimeSite) -> bool:
    assert site.weight is not None
    scheme = site.weight.scheme
    return 2 <= scheme.dtype.bits <= WIDEST and site.weight.algorithm.codes is None and site.weight.is_calibrated


def _term(site: RuntimeSite) -> Tensor:
    weight, quantizer = site.own_weight(), site.weight
    assert weight is not None
    assert quantizer is not None
    with torch.no_grad():
        factor = site.normalization().factor() if site.folds else None
        scale = numerics.expand(quantizer.scale_of(weight, factor), quantizer.scheme.granularity, tuple(weight.shape))
        codes = quantizer.codes(weight, factor)
        if quantizer.tied and factor is not None:
            along = numerics.along_axis(factor.float(), 0, weight.dim())
            scale = scale / torch.clamp(along.abs(), min=numerics.MIN_SCALE)
            codes = codes * torch.where(along < 0, -1.0, 1.0)
        low, high = scale * quantizer.scheme.qmin, scale * quantizer.scheme.qmax
    return (codes * scale - torch.clamp(weight.float(), low, high)).square().sum()
