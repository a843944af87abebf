"""Learned Step Size Quantization (Esser et al. 2020)."""

from __future__ import annotations

import math

from torch import Tensor

from truequant import kernels
from truequant.fake.algorithms.algorithm import Algorithm, positive, with_gain
from truequant.schemes import QuantScheme


def fake(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme, clip: kernels.Clip = kernels.NO_CLIP) -> Tensor:
    """Equations 1 and 2, with the gradients of equations 3 (scale) and 5 (x: inside the range before rounding)."""
    if scheme.dtype.bits == 1 and scheme.dtype.signed:  # Qp = 1: codes -1 and +1
        return kernels.fake_binarize(x, scale, identity=scheme.gradient == "identity")
    return kernels.fake_quantize_learned(x, scale, zero_point, scheme.qmin, scheme.qmax, clip=clip)


def gradient_scale(scheme: QuantScheme, elements: int) -> float:
    """Section 2.2: `g = 1 / sqrt(N * Qp)`."""
    own: float = getattr(scheme.scale, "gradient_scale", 1.0)
    return own / math.sqrt(max(1, elements) * max(1, scheme.qmax))


def trainable(scheme: QuantScheme, initial: Tensor, shift: Tensor, elements: int) -> Tensor:
    """The scale in force. A step of `shift` moves it by `initial * step`: dividing by `initial` twice makes that LSQ's step."""
    gain = gradient_scale(scheme, elements)
    scale = kernels.learned_scale(initial, shift, gain)
    return with_gain(positive(initial, shift), gain / (initial * initial)) if scale is None else scale


ALGORITHM = Algorithm(fake=fake, trainable=trainable)
