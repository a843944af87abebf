"""GPTQ (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from truequant.calibration.layers import Layer, roundable, warn_left
from truequant.calibration.method import Method, Stage, Work
from truequant.calibration.running import inputs_of
from truequant.errors import ArgumentError
from truequant.fake import TRANSPOSED
from truequant.planning import LINEAR_OPS


@dataclass(frozen=True, slots=True)
class GPTQ(Method):
    """Round weights input by input, and let those not yet rounded make up for each error.

    Of every output channel, with H = 2 X X' + damping * mean(diag(2 X X')) I over the inputs that the quantized model
    computes: weight q is rounded to the nearest code, and the rest moves by

        delta = - (w_q - quant(w_q)) / [H^-1]_qq  (H^-1)_{:,q}                    (equation 2)

    with the rows of H^-1 for the weights not yet rounded read from its Cholesky factor (section 3.3, step 3). Scales stay as
    they are. Convolutions count each place as a sample, groups have an H each. Works for layers on integers and for layers
    of which only the weight is quantized. Inputs that never differ from 0 round to nearest.

    order: round the inputs with the largest H_qq first (the "act-order" of the authors' code).
    """

    damping: float = 0.01
    order: bool = True
    stage: ClassVar[Stage] = Stage.CORRECT

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ArgumentError("GPTQ: damping out of range", got=repr(self.damping), expected="more than 0, such as 0.01")

    def apply(self, work: Work) -> None:
        found = roundable(work.model, "GPTQ")
        transposed = [layer for layer in found if layer.site.plan.op in TRANSPOSED]
        warn_left("GPTQ", [(layer.name, "it is a transposed convolution") for layer in transposed])
        for layer in work.bars.track([one for one in found if one not in transposed], "GPTQ"):
            hessian = second_moments(layer, inputs_of(work.model, layer.module, work.batches, layer.calls))
            layer.write(self.codes(layer.coded(), layer.scale(), layer.quantizer.scheme, hessian))

    @torch.no_grad()
    def codes(self, weight: Tensor, scale: Tensor, scheme: Any, hessian: Tensor) -> Tensor:
        """Codes `(O, I / groups, *kernel)` of a weight; hessian: `(groups, N, N)`, N the weights of one output channel."""
        groups, size, _ = hessian.shape
        rows = weight.double().reshape(groups, -1, size)
        steps = scale.expand(weight.shape).double().reshape(groups, -1, size)
        codes = torch.empty_like(rows)
        for group in range(groups):
            codes[group] = self._group(rows[group].clone(), steps[group], scheme.qmin, scheme.qmax, hessian[group].clone())
        return codes.reshape(weight.shape).float()

    def _group(self, rows: Tensor, steps: Tensor, qmin: int, qmax: int, hessian: Tensor) -> Tensor:
        diagonal = hessian.diagonal()
        dead = diagonal == 0
        diagonal.add_(self.damping * diagonal.mean()).masked_fill_(dead, 1.0)
        ranking = torch.argsort(diagonal, descending=True, stable=True) if self.order else torch.arange(len(diagonal))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[ranking][:, ranking]))
        factor = torch.linalg.cholesky(inverse, upper=True)
        rows, steps, codes = rows[:, ranking], steps[:, ranking], torch.empty_like(rows)
        for q in range(rows.shape[1]):
            codes[:, q] = torch.clamp(torch.round(rows[:, q] / steps[:, q]), qmin, qmax)
            error = (rows[:, q] - codes[:, q] * steps[:, q]) / factor[q, q]
            rows[:, q:] -= error[:, None] * factor[q, q:]
        return codes[:, torch.argsort(ranking)]


@torch.no_grad()
def second_moments(layer: Layer, inputs: list[Tensor]) -> Tensor:
    """`2 X X'` of the inputs that meet the weights of one output channel, float64 `(groups, N, N)`."""
    return torch.stack([torch.matmul((p := patches(layer, x)).mT, p) for x in inputs]).sum(0) * 2.0


def patches(layer: Layer, x: Tensor) -> Tensor:
    """What each product of a layer reads, float64 `(groups, samples, N)`: a convolution's windows as rows."""
    if layer.site.plan.op in LINEAR_OPS:
        return x.reshape(1, -1, x.shape[-1]).double()
    module = layer.module
    x = F.pad(x, module._reversed_padding_repeated_twice)  # other modes than zeros are planned as a pad of their own
    spatial = len(module.kernel_size)
    for axis, (k, stride, dilation) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        x = x.unfold(2 + axis, dilation * (k - 1) + 1, stride)[..., ::dilation]
    # (B, C, *places, *kernel) -> (groups, B * places, C / groups * kernel)
    x = x.movedim(1, 1 + spatial).flatten(0, spatial).flatten(2)
    return x.reshape(len(x), module.groups, -1).transpose(0, 1).double()
