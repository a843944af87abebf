"""Compiled kernels give the reference's bits for every scale, zero point, range, value, shape, layout and dtype."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.properties.test_codes import SCALES
from tests.unit.kernels.levels import LEVELS, same
from truequant import kernels
from truequant.kernels import reference

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
RANGES = [(0, 255), (-128, 127), (-127, 127), (0, 15), (-7, 7), (0, 1), (-32768, 32767), (0, 65535)]
NEAR = st.sampled_from([0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 254.5, 255.5, math.nan, math.inf, -math.inf, 1e30, 1e-42])
"""Values in steps of the scale: ties, ends of ranges, what is not finite, what is hardly there."""


@st.composite
def tensors(draw: st.DrawFn, scale: float) -> Tensor:
    """Ordinary and awkward values in any layout."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    x = (
        torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
        * scale
        * draw(st.sampled_from([1.0, 50.0, 300.0]))
    )
    flat = x.view(-1)
    for place, steps in draw(st.dictionaries(st.integers(0, flat.numel() - 1), NEAR, max_size=5)).items():
        flat[place] = steps * scale
    x = x.permute(draw(st.permutations(range(x.dim()))))
    if draw(st.booleans()):
        x = x[..., ::2]
    return x.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """x, scales and zero points of all or of each index of an axis, and the range of codes."""
    unit, (low, high) = draw(SCALES), draw(st.sampled_from(RANGES))
    x = draw(tensors(unit))
    axis = draw(st.none() | st.integers(0, x.dim() - 1))
    shape = [n if k == axis else 1 for k, n in enumerate(x.shape)] if axis is not None else []
    factors = draw(st.lists(st.floats(0.5, 2.0, width=32), min_size=math.prod(shape), max_size=math.prod(shape)))
    zeros = draw(st.lists(st.integers(low, high), min_size=len(factors), max_size=len(factors)))
    return x, (torch.tensor(factors) * unit).reshape(shape), torch.tensor(zeros).float().reshape(shape), low, high


def results(module: object, case: tuple[Tensor, Tensor, Tensor, int, int], rule: str, seed: int) -> list[Tensor]:
    given_x, given_scale, second, low, high = case
    x, scale = given_x.detach().requires_grad_(), given_scale.detach().requires_grad_()
    offset = (-second * given_scale).requires_grad_()
    match rule:
        case "straight through":
            y, wanted = module.fake_quantize(x, given_scale, second, low, high), [x]  # type: ignore[attr-defined]
        case "learned":
            y, wanted = module.fake_quantize_learned(x, scale, second, low, high, factor=0.5), [x, scale]  # type: ignore[attr-defined]
        case "offset":
            y, wanted = module.fake_quantize_offset(x, scale, offset, low, high), [x, scale, offset]  # type: ignore[attr-defined]
        case _:
            y, wanted = module.fake_binarize(x, scale), [x, scale]  # type: ignore[attr-defined]
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, wanted, g)]


@QUICK
@given(cases(), st.sampled_from(["straight through", "learned", "offset", "binary"]), st.integers(0, 99))
def test_every_level_gives_the_bits_of_the_reference(
    case: tuple[Tensor, Tensor, Tensor, int, int], rule: str, seed: int
) -> None:
    expected = results(reference, case, rule, seed)
    for level in LEVELS:
        with kernels.using(level):
            for k, (a, b) in enumerate(zip(expected, results(kernels, case, rule, seed), strict=True)):
                assert same(a, b), f"{level}, value {k}: {a} {b}"
