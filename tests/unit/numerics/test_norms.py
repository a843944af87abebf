"""Norms of codes: the program's node and the oracle compute the same codes and the same values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import agreement, oracle, oracle_rows
from tests.programs import edge
from truequant.integer.nodes import Edge, Normalize
from truequant.numerics import NormRule, norm_constants, too_long
from truequant.numerics.norms import root

KINDS = ("layer", "rms", "l2", "group")
WIDTHS = (1, 2, 3, 7, 64, 191, 768, 4096)


def awkward_rows(width: int, zero_point: int, generator: torch.Generator, codes: tuple[int, int] = (0, 255)) -> Tensor:
    """Random, narrow, constant, one-hot and extreme rows."""
    low, high = codes
    rows = torch.randint(low, high + 1, (11, width), generator=generator)
    rows[1], rows[2], rows[3], rows[4] = low, high, zero_point, (low + high) // 2 + 1
    rows[5], rows[5, 0] = zero_point, high
    rows[6], rows[6, -1] = high, low
    rows[7] = torch.where(rows[7] % 2 == 0, low, high)
    middle = (low + high) // 2
    rows[8] = (middle + torch.randn(width, generator=generator) * 3).round().clamp(low, high).long()
    return rows


def norm(
    kind: str, width: int, generator: torch.Generator, *, eps: float = 1e-5, plain: bool = False, value: bool = False,
    ends: tuple[int, int] = (0, 255), outside: bool = False, correction: int = 0,
) -> Normalize:  # fmt: skip
    gain = None if plain or kind == "l2" else torch.randn(width, generator=generator)
    bias = None if plain or kind in ("l2", "rms") else torch.randn(width, generator=generator)
    axes, groups = ((), 1) if kind == "group" else ((-1,), 0)
    return Normalize("x", "v" if value else "y", kind, axes, groups, eps, outside, correction, gain, bias, *ends)  # type: ignore[arg-type]


def one(node: Normalize, edges: dict[str, Edge], x: Tensor) -> Tensor:
    """What the node makes of these codes, after the oracle agreed on every bit."""
    node.check(edges)
    found = node.run(edges, [x])
    grids = {name: oracle.Qparams(e.scale, e.zero_point, e.qmin, e.qmax) for name, e in edges.items()}
    rule = oracle_rows.Norm(node.kind, node.axes, node.groups, node.eps, node.outside, node.correction)
    gain, bias = (None if t is None else t.numpy() for t in (node.gain, node.bias))
    values = oracle_rows.norm(x.numpy(), rule, gain, bias, grids["x"], grids.get("y"))
    if "y" in edges:
        assert np.array_equal(found.numpy(), oracle_rows.norm_codes(values, grids["y"], node.low, node.high))
    else:
        assert np.array_equal(found.numpy().view(np.int32), values.view(np.int32))
    return found


@pytest.mark.parametrize("zero_point", [0, 117, 128, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_every_width_is_the_oracles(kind: str, zero_point: int) -> None:
    generator = torch.Generator().manual_seed(zero_point)
    edges = {"x": edge(0.031, zero_point), "y": edge(0.027, 113)}
    for width in WIDTHS:
        one(norm(kind, width, generator), edges, x=awkward_rows(width, zero_point, generator))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codes", [(0, 65535), (-32768, 32767), (-128, 127), (0, 15)])
def test_codes_of_any_number_of_bits(kind: str, codes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(codes[1])
    zero_point = codes[0] + (codes[1] - codes[0]) // 3
    edges = {"x": edge(2.0 / (codes[1] - codes[0]), zero_point, codes), "y": edge(6.0 / (codes[1] - codes[0]), 3, codes)}
    for width in (1, 7, 64, 300):
        rows = awkward_rows(width, zero_point, generator, codes)
        one(norm(kind, width, generator, ends=codes), edges, x=rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 0.5])
def test_values_and_every_eps(kind: str, plain: bool, eps: float) -> None:
    generator = torch.Generator().manual_seed(3)
    edges = {"x": edge(0.0123, 131), "y": edge(0.05, 128)}
    rows = awkward_rows(24, 131, generator)
    one(norm(kind, 24, generator, eps=eps, plain=plain), edges, x=rows)
    values = one(norm(kind, 24, generator, eps=eps, plain=plain, value=True), {"x": edges["x"]}, x=rows)
    assert bool(torch.isfinite(values).all())


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("correction", [0, 1])
def test_an_unbiased_deviation_and_an_eps_beside_it(outside: bool, correction: int) -> None:
    generator = torch.Generator().manual_seed(4)
    edges = {"x": edge(0.0123, 131), "y": edge(0.05, 128)}
    rows = awkward_rows(24, 131, generator)
    node = norm("layer", 24, generator, eps=1e-3, outside=outside, correction=correction, value=True)
    found = one(node, {"x": edges["x"]}, x=rows)
    x = (rows - 131).double() * edges["x"].scale
    variance = x.var(-1, correction=correction, keepdim=True)
    deviation = variance.sqrt() + 1e-3 if outside else (variance + 1e-3).sqrt()
    expected = (x - x.mean(-1, keepdim=True)) / deviation * node.gain + node.bias
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_is_the_float_op_up_to_rounding(kind: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x_edge = edge(0.0123, 131)
    rows = awkward_rows(48, 131, generator)
    if kind == "group":
        rows = rows[:, :, None].expand(-1, -1, 4).contiguous()
    node = norm(kind, 48, generator, value=True)
    if kind == "group":
        node = Normalize("x", "v", "group", (), 6, 1e-5, False, 0, node.gain, node.bias, 0, 255)
    found = one(node, {"x": x_edge}, x=rows)
    x = (rows - 131).double() * x_edge.scale
    gain, bias = (None if t is None else t.double() for t in (node.gain, node.bias))
    expected = {
        "layer": lambda: torch.nn.functional.layer_norm(x, (48,), gain, bias),
        "rms": lambda: torch.nn.functional.rms_norm(x, (48,), gain, 1e-5),
        "l2": lambda: torch.nn.functional.normalize(x, dim=-1, eps=1e-5),
        "group": lambda: torch.nn.functional.group_norm(x, 6, gain, bias),
    }[kind]()
    least = 1e-4 if kind == "group" else 1e-5  # `c * a + b` of a row of equal codes, which eps alone keeps finite
    torch.testing.assert_close(found, expected.float(), rtol=least, atol=least)


@pytest.mark.parametrize("axes", [(-3,), (-2, -1), (-3, -1), (-3, -2, -1)])
@pytest.mark.parametrize("kind", ["layer", "rms", "l2"])
def test_axes_anywhere(kind: str, axes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(6)
    edges = {"x": edge(0.031, 100), "y": edge(0.03, 128)}
    shape = (2, 3, 4, 5)
    sizes = [shape[axis] for axis in axes]
    gain = None if kind == "l2" else torch.randn(sizes, generator=generator)
    bias = torch.randn(sizes, generator=generator) if kind == "layer" else None
    node = Normalize("x", "y", kind, axes, 0, 1e-5, False, 0, gain, bias, 0, 255)  # type: ignore[arg-type]
    one(node, edges, x=torch.randint(0, 256, shape, generator=generator))


@pytest.mark.parametrize("shape", [(2, 6), (3, 6, 5), (1, 6, 3, 4), (2, 6, 2, 2, 3), (0, 6, 4)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_groups(shape: tuple[int, ...], groups: int) -> None:
    generator = torch.Generator().manual_seed(7)
    edges = {"x": edge(0.031, 100), "y": edge(0.03, 128)}
    gain, bias = torch.randn(6, generator=generator), torch.randn(6, generator=generator)
    for g, b in ((gain, bias), (None, None), (gain, None)):
        node = Normalize("x", "y", "group", (), groups, 1e-5, False, 0, g, b, 7, 250)
        one(node, edges, x=torch.randint(0, 256, shape, generator=generator))


def test_rows_that_float64_alone_cannot_hold() -> None:
    """n * S2 passes 2^53: the difference is taken of 64-bit integers, where float64 would lose its last bits."""
    width = 2**19 + 2  # the square of the sum is odd
    row = torch.full((1, width), 255)
    row[0, 0] = 254
    values = one(Normalize("x", "v", "layer", (-1,), 0, 0.0, False, 0, None, None, 0, 0), {"x": edge(1.0, 0)}, x=row)
    assert float(values[0, 0]) == pytest.approx(-((width - 1) ** 0.5), rel=1e-4)
    assert too_long(2**31, 255)
    assert not too_long(width, 255)
    assert NormRule("layer", (-1,), 0, 0.0).count((1, width)) == width


def test_the_root_is_the_nearest_float32() -> None:
    generator = torch.Generator().manual_seed(8)
    x = torch.rand(200_000, generator=generator) * 10.0 ** torch.randint(-6, 7, (200_000,), generator=generator)
    assert np.array_equal(root(x).numpy(), np.sqrt(x.numpy()))


def test_constants_divide_by_tensors() -> None:
    """`number / tensor` is reciprocal times number in torch: the term of eps must be one division in float64."""
    for scale in torch.rand(500, generator=torch.Generator().manual_seed(9)) * 0.1 + 1e-3:
        found = norm_constants(NormRule("rms", (-1,), 0, 1e-6), 64, None, None, scale, torch.tensor(1.0)).term
        assert float(found) == float(np.float32(1e-6 / float(scale) ** 2)) * 64


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_is_interpreted_in_the_oracles_words(kind: str) -> None:
    generator = torch.Generator().manual_seed(10)
    edges = {"x": edge(0.0123, 131), "y": edge(0.05, 128)}
    agreement.one(norm(kind, 7, generator), edges, x=awkward_rows(7, 131, generator))
    agreement.one(norm(kind, 7, generator, value=True), {"x": edges["x"]}, x=awkward_rows(7, 131, generator))
