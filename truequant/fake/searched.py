"""Scales of weights that are searched for: found once for a weight, whoever asks.

A search is a function of the weight alone. Its result is kept beside a fingerprint of the weight's bits, and is used as long as
these are the same: nothing that writes into a weight, or puts another in its place, has to tell.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from truequant import kernels, numerics
from truequant.observers import weight_range
from truequant.planning import scheme_from_json, scheme_to_json
from truequant.schemes import MSE, Histogram, Percentile, QuantScheme


def is_searched(scheme: QuantScheme) -> bool:
    """Whether many candidates are tried, or all values sorted, for the range of a weight; else one pass reads it."""
    binary = scheme.dtype.bits == 1 and scheme.dtype.signed
    return scheme.scale.of_range and not binary and isinstance(scheme.observer, (MSE, Histogram, Percentile))


def search(values: Tensor, scheme: QuantScheme) -> Tensor:
    """The scale of a float32 weight whose range is searched."""
    return numerics.scale_and_zero_point(*weight_range(values, scheme, kernels.least_error), scheme)[0]


# One op, so that compiled code finds the scale that eager code finds, and nobody unrolls a loop over candidates.
@torch.library.custom_op("truequant::searched_scale", mutates_args=())
def _compiled_search(values: Tensor, scheme: str, shape: list[int]) -> Tensor:
    return search(values, scheme_from_json(json.loads(scheme)))


@_compiled_search.register_fake
def _(values: Tensor, scheme: str, shape: list[int]) -> Tensor:
    return values.new_empty(shape, dtype=torch.float32)


class Searched:
    """The last scale that was searched for, and for what. It travels neither by `copy` nor by `pickle`."""

    def __init__(self, scheme: QuantScheme) -> None:
        self.scheme = scheme
        self.scheme_text = json.dumps(scheme_to_json(scheme))
        """What the op of compiled code is told of the scheme."""
        self.key: object = None
        self.scale: Tensor | None = None

    def __reduce__(self) -> tuple[type[Searched], tuple[QuantScheme]]:
        return Searched, (self.scheme,)

    def of(self, values: Tensor) -> Tensor:
        """The scale of these values, which nobody may write into."""
        scheme = self.scheme
        if torch.compiler.is_compiling():
            shape = list(numerics.parameter_shape(scheme.granularity, tuple(values.shape)))
            found: Tensor = _compiled_search(values, self.scheme_text, shape)
            return found
        if not kernels.is_plain(values):
            return search(values, scheme)
        key = (values.shape, values.device, kernels.fingerprint(values))
        if self.scale is None or self.key != key:
            self.scale = search(values, scheme)
            self.key = key
        if self.scale.is_inference() and not torch.is_inference_mode_enabled():  # autograd could not keep it
            self.scale = self.scale.clone()
        return self.scale
