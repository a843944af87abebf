"""The reference program and the oracle compute the same integers, on every op."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.agreement import agree, one
from tests.oracle import Qparams, tabulate
from tests.programs import (
    S8,
    codes_in,
    edge,
    f32,
    random_codes,
    random_conv,
    random_linear,
    residual_net,
)
from truequant import numerics
from truequant.integer import IntegerProgram, nodes


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


CONVS: dict[str, dict[str, object]] = {
    "1d": {"x": (2, 3, 9), "w": (4, 3, 3), "padding": 1},
    "3d": {"x": (1, 2, 4, 5, 3), "w": (3, 2, 2, 3, 1), "padding": ((1, 0), (1, 1), (0, 0))},
    "1x1": {"x": (2, 5, 4, 3), "w": (3, 5, 1, 1)},
    "1x1 stride 2": {"x": (2, 5, 5, 4), "w": (3, 5, 1, 1), "stride": 2},
    "3x3": {"x": (2, 3, 6, 7), "w": (4, 3, 3, 3), "padding": 1},
    "3x3 stride 2 asymmetric": {"x": (1, 3, 8, 8), "w": (2, 3, 3, 3), "stride": 2, "padding": ((0, 1), (0, 1))},
    "5x3 dilated": {"x": (1, 2, 12, 9), "w": (3, 2, 5, 3), "dilation": 2, "padding": 2},
    "whole input": {"x": (2, 3, 4, 4), "w": (5, 3, 4, 4)},
    "padding larger than the kernel": {"x": (1, 1, 2, 2), "w": (2, 1, 1, 1), "padding": 3},
    "grouped": {"x": (2, 6, 5, 5), "w": (9, 2, 3, 3), "groups": 3, "padding": 1},
    "depthwise": {"x": (2, 4, 6, 5), "w": (4, 1, 3, 3), "groups": 4, "padding": 1},
    "depthwise stride 2": {"x": (2, 4, 7, 8), "w": (4, 1, 3, 3), "groups": 4, "stride": 2, "padding": 1},
    "depthwise multiplier 2, dilated": {"x": (1, 3, 9, 9), "w": (6, 1, 3, 3), "groups": 3, "dilation": 2, "padding": 2},
    "depthwise 1d": {"x": (2, 3, 8), "w": (3, 1, 5), "groups": 3, "padding": 2},
    "one channel": {"x": (2, 1, 5, 5), "w": (1, 1, 3, 3)},
    "no batch": {"x": (0, 3, 5, 5), "w": (2, 3, 3, 3), "padding": 1},
    "no batch, depthwise": {"x": (0, 3, 5, 5), "w": (3, 1, 3, 3), "groups": 3},
}
ZERO_POINTS = {"low end": (0, 255), "middle": (128, 7), "high end": (255, 0)}


@pytest.mark.parametrize("zero_points", ZERO_POINTS)
@pytest.mark.parametrize("case", CONVS)
def test_conv(case: str, zero_points: str, generator: torch.Generator) -> None:
    fields = dict(CONVS[case])
    shape, weight_shape = fields.pop("x"), fields.pop("w")
    zx, zy = ZERO_POINTS[zero_points]
    edges = {"x": edge(0.031, zx), "y": edge(0.27, zy)}
    node = random_conv(generator, "x", "y", weight_shape, per_tensor=case == "grouped", **fields)
    one(node, edges, x=random_codes(shape, edges["x"], generator))


@pytest.mark.parametrize("codes", [(0, 255), (-128, 127), (0, 15), (-7, 7), (0, 1), (-32768, 32767), (0, 65535)])
def test_layers_on_codes_of_any_width(codes: tuple[int, int], generator: torch.Generator) -> None:
    source = edge(0.02, (codes[0] + codes[1]) // 2, codes)
    wide = 1 if codes[1] < 256 else 1 / 128
    edges = {"x": source, "y": edge(0.5, codes[0] + 1, codes)}
    conv = random_conv(generator, "x", "y", (4, 3, 3, 3), scale=wide, padding=1, low=codes[0], high=codes[1])
    depthwise = random_conv(generator, "x", "y", (3, 1, 3, 3), scale=wide, groups=3, low=codes[0], high=codes[1])
    linear = random_linear(generator, "x", "y", 4, 7, scale=wide, low=codes[0], high=codes[1])
    for node in (conv, depthwise, linear):
        one(node, edges, x=random_codes((2, 3, 7, 7), source, generator))


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (0, 7), (2, 3, 7), (2, 0, 7), (7,)])
def test_linear(shape: tuple[int, ...], generator: torch.Generator) -> None:
    edges = {"x": edge(0.02, 9), "y": edge(0.21, 77)}
    one(random_linear(generator, "x", "y", 4, 7), edges, x=random_codes(shape, edges["x"], generator))


def test_layers_that_return_values(generator: torch.Generator) -> None:
    edges = {"x": edge(0.02, 9)}
    values = one(random_linear(generator, "x", "y", 4, 7), edges, x=random_codes((3, 7), edges["x"], generator))
    assert values.is_floating_point()
    conv = random_conv(generator, "x", "y", (4, 2, 3, 3), per_tensor=True)
    one(conv, edges, x=random_codes((2, 2, 4, 4), edges["x"], generator))


def test_a_fused_clamp_moves_the_ends_only(generator: torch.Generator) -> None:
    edges = {"x": edge(0.02, 9), "y": edge(0.21, 77)}
    codes = random_codes((6, 7), edges["x"], generator)
    node = random_linear(generator, "x", "y", 4, 7, scale=0.05)
    free, clamped = one(node, edges, x=codes), nodes.Linear("x", "y", node.weight, node.weight_scale, node.bias, 77, 120)
    assert torch.equal(one(clamped, edges, x=codes), free.clamp(77, 120))
    assert free.min() < 77
    assert free.max() > 120


@pytest.mark.parametrize("sign", [1, -1])
def test_accumulators_around_two_to_the_24_and_far_beyond(sign: int, generator: torch.Generator) -> None:
    """Odd sums above 2^24 are not float32 numbers: carried by float32 they would lose their last bit."""
    edges = {"x": edge(1.0, 0), "y": edge(0.5, 0, (-32768, 32767))}
    weight = (sign * torch.randint(120, 128, (3, 4096), generator=generator)).to(torch.int8)
    bias = torch.tensor([2**24 + 1, -(2**30) + 1, 5], dtype=torch.int32)
    scale = torch.tensor([2.0**-14, 2.0**-16, 1e-4])
    codes = torch.randint(250, 256, (3, 4096), generator=generator)
    node = nodes.Linear("x", "y", weight, scale, bias, -32768, 32767)
    one(node, edges, x=codes)
    sums = codes.double() @ weight.double().t() + bias
    assert sums.abs().max() > 2**26
    values = nodes.Linear("x", "v", weight, torch.ones(1), bias, 0, 0)
    assert torch.equal(one(values, {"x": edges["x"]}, x=codes), sums.float())


def test_conv_beyond_two_to_the_24(generator: torch.Generator) -> None:
    edges = {"x": edge(1.0, 255), "y": edge(900.0, 255)}
    conv = random_conv(generator, "x", "y", (2, 128, 3, 3), scale=0.5, padding=1)
    conv = nodes.Conv("x", "y", (conv.weight.abs() | 96).to(torch.int8), *_behind_weight(conv))
    one(conv, edges, x=torch.randint(0, 9, (1, 128, 5, 5), generator=generator))
    depthwise = nodes.Conv(
        "x", "y", conv.weight[:, :1], conv.weight_scale, conv.bias * 0 + 2**30 + 1, *_behind_bias(conv, groups=2)
    )
    one(depthwise, edges, x=torch.randint(0, 9, (1, 2, 5, 5), generator=generator))


def _behind_weight(node: nodes.Conv) -> tuple[object, ...]:
    return (node.weight_scale, node.bias, *_behind_bias(node, node.groups))


def _behind_bias(node: nodes.Conv, groups: int) -> tuple[object, ...]:
    return node.stride, node.padding, node.dilation, groups, node.low, node.high


@pytest.mark.parametrize("multiplier", [0.5, 0.25, 1.5, 2.0**-8])
def test_ties_round_to_even_before_the_zero_point_is_added(multiplier: float) -> None:
    """x * 1 with sx * sw / sy a dyadic number: half of the products lie exactly between two codes."""
    edges = {"x": edge(multiplier, 128), "y": edge(1.0, 37)}
    identity = nodes.Linear(
        "x", "y", torch.ones(1, 1, dtype=torch.int8), torch.ones(1), torch.zeros(1, dtype=torch.int32), 0, 255
    )
    got = one(identity, edges, x=torch.arange(256).reshape(256, 1)).flatten()
    wanted = [min(max(round((q - 128) * multiplier) + 37, 0), 255) for q in range(256)]
    assert got.tolist() == wanted


@pytest.mark.parametrize(
    ("sx", "sw", "sy"), [(2.0**-60, 2.0**-40, 2.0**20), (2.0**60, 2.0**3, 2.0**-60), (2.0**-64, 1.1, 2.0**-64)]
)
def test_extreme_multipliers(sx: float, sw: float, sy: float, generator: torch.Generator) -> None:
    edges = {"x": edge(sx, 100), "y": edge(sy, 100)}
    one(random_linear(generator, "x", "y", 3, 5, scale=sw), edges, x=random_codes((4, 5), edges["x"], generator))


def test_an_all_zero_input_and_a_dead_channel(generator: torch.Generator) -> None:
    edges = {"x": edge(0.02, 31), "y": edge(0.21, 7)}
    node = random_conv(generator, "x", "y", (4, 2, 3, 3), padding=1)
    node.weight[2] = 0
    node.bias[2] = 0
    node.weight_scale[2] = 2.0**-100
    zeros = torch.full((1, 2, 4, 4), 31)
    got = one(node, edges, x=zeros)
    assert torch.equal(got[:, 2], torch.full((1, 4, 4), 7, dtype=torch.uint8))
    assert torch.equal(got, got[:, :, :1, :1].expand_as(got))


SETTINGS: dict[str, tuple[nodes.Edge, nodes.Edge, nodes.Edge]] = {
    "random scales": (edge(0.0173, 3), edge(0.0291, 200), edge(0.0361, 119)),
    "powers of two": (edge(2**-6, 0), edge(2**-5, 128), edge(2**-4, 64)),
    "equal scales, double the output": (edge(0.013, 0), edge(0.013, 0), edge(0.026, 0)),
    "powers of two, odd zero point": (edge(2**-5, 117), edge(2**-6, 33), edge(2**-4, 131)),
    "zero points at both ends": (edge(0.02, 0), edge(0.03, 255), edge(0.04, 255)),
    "one far larger": (edge(1.7, 128), edge(0.0011, 128), edge(1.7, 128)),
    "signed": (edge(0.02, 0, S8), edge(0.01, -5, S8), edge(0.023, 1, S8)),
    "mixed signs": (edge(0.02, 128), edge(0.01, 0, S8), edge(0.023, 1, S8)),
    "narrow": (edge(0.2, 3, (0, 15)), edge(0.1, 0, (0, 15)), edge(0.15, 8, (0, 15))),
    "tiny": (edge(2.0**-60, 5), edge(2.0**-59, 9), edge(2.0**-60, 0)),
    "huge": (edge(1.1 * 2.0**30, 5), edge(2.0**29, 9), edge(1.7 * 2.0**31, 250)),
}


@pytest.mark.parametrize("rule", ["onnxruntime", "portable"])
@pytest.mark.parametrize("kind", [nodes.Add, nodes.Mul])
@pytest.mark.parametrize("setting", SETTINGS)
def test_binary_ops_on_pairs_of_codes(setting: str, kind: Callable[..., nodes.Node], rule: str) -> None:
    a, b, y = SETTINGS[setting]
    left = torch.arange(a.qmin, a.qmax + 1, 15).reshape(-1, 1)  # both ends, against all codes of the other
    right = torch.arange(b.qmin, b.qmax + 1).reshape(1, -1)
    low = (y.qmin + y.zero_point) // 2
    got = one(kind("a", "b", "y", rule, low, y.qmax), {"a": a, "b": b, "y": y}, a=left, b=right)
    assert got.shape == (left.numel(), right.numel())


ORDER_MATTERS = (edge(0.026675669476389885, 255), edge(0.010670267045497894, 252), edge(0.028454046696424484, 89))
ROUNDING_MATTERS = (edge(0.021243713796138763, 204), edge(0.030960844829678535, 90), edge(0.028751904144883156, 156))


@pytest.mark.parametrize(("kind", "setting"), [(nodes.Add, ORDER_MATTERS), (nodes.Mul, ROUNDING_MATTERS)])
def test_binary_ops_on_all_pairs_of_codes(
    kind: Callable[..., nodes.Node], setting: tuple[nodes.Edge, nodes.Edge, nodes.Edge]
) -> None:
    """Settings where other orders of the same roundings give other codes: 366 of the sums, 36 of the products."""
    left, right = torch.arange(256).reshape(-1, 1), torch.arange(256).reshape(1, -1)
    edges = dict(zip("aby", setting, strict=True))
    got = one(kind("a", "b", "y", "onnxruntime", 0, 255), edges, a=left, b=right)
    if kind is nodes.Add:
        turned = one(nodes.Add("b", "a", "y", "onnxruntime", 0, 255), edges, a=left[::51], b=right)
        assert not torch.equal(got[::51], turned)
        assert (got[::51].int() - turned.int()).abs().max() == 1


def test_add_broadcasts_and_its_rules_differ() -> None:
    a, b, y = SETTINGS["powers of two, odd zero point"]
    edges = {"a": a, "b": b, "y": y}
    left, right = torch.arange(256).reshape(1, 256, 1), torch.arange(0, 256, 5).reshape(52, 1, 1)
    fused = one(nodes.Add("a", "b", "y", "onnxruntime", 0, 255), edges, a=left, b=right)
    portable = one(nodes.Add("a", "b", "y", "portable", 0, 255), edges, a=left, b=right)
    assert fused.shape == (52, 256, 1)
    assert (fused != portable).float().mean() > 0.1


FUNCTIONS: dict[str, tuple[Callable[[float], float], Callable[[Tensor], Tensor]]] = {
    "sigmoid": (lambda v: 1 / (1 + math.exp(-v)), torch.sigmoid),
    "tanh": (math.tanh, torch.tanh),
    "hardswish": (lambda v: v * min(max(v + 3, 0), 6) / 6, torch.nn.functional.hardswish),
    "gelu": (lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))), torch.nn.functional.gelu),
    "square": (lambda v: v * v, torch.square),
}


@pytest.mark.parametrize("codes", [(0, 255), (-128, 127), (0, 15)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_tables(name: str, codes: tuple[int, int], generator: torch.Generator) -> None:
    x, y = edge(8 / (codes[1] - codes[0]), (codes[0] + codes[1]) // 2, codes), edge(0.017, codes[0] + 5, codes)
    plain, batched = FUNCTIONS[name]
    qparams = [(torch.tensor(e.scale), torch.tensor(float(e.zero_point))) for e in (x, y)]
    entries = numerics.table(batched, qparams[0], codes, qparams[1], *codes)
    assert entries.tolist() == tabulate(plain, Qparams(*_fields(x)), Qparams(*_fields(y)))
    table = nodes.Table("x", "y", entries.to(torch.int16), name)
    one(table, {"x": x, "y": y}, x=random_codes((3, 2, 5), x, generator))


def _fields(e: nodes.Edge) -> tuple[float, int, int, int]:
    return e.scale, e.zero_point, e.qmin, e.qmax


def test_quantize_and_dequantize_everywhere(generator: torch.Generator) -> None:
    special = [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        1e-38,
        3.4e38,
        -3.4e38,
        math.inf,
        -math.inf,
        math.nan,
        0.5,
        -0.5,
        1.5,
        2.5,
        127.5,
        -127.5,
    ]
    for scale in (1.0, 0.1, 2.0**-3, f32(1 / 3), 2.0**-64, 2.0**64, 2.0**-126):
        ties = (torch.arange(-600, 600) + 0.5) * scale
        x = torch.cat([torch.tensor(special), ties, ties * (1 + 1e-7), torch.randn(500, generator=generator) * 100 * scale])
        for y in (
            edge(scale, 0),
            edge(scale, 255),
            edge(scale, 0, S8),
            edge(scale, -128, S8),
            edge(scale, 3, (0, 15)),
            edge(scale, 5, (2, 9)),
        ):
            steps = (nodes.Quantize("v.value", "y"), nodes.Dequantize("y", "w"))
            names, _ = codes_in("v", rank=1)
            got = agree(IntegerProgram(names, steps, {"y": y}, "w", "onnxruntime"), **{"v.value": x})
            assert got["y"][9] == min(max(0, y.qmin), y.qmax)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_residual_net(batch: int, power_of_two: bool, generator: torch.Generator) -> None:
    for seed in range(2):
        model = residual_net(seed, power_of_two=power_of_two)
        got = agree(model, x=torch.randn(batch, 2, 8, 8, generator=generator))
        if batch:
            assert got["sum2"].unique().numel() > 20  # a net whose codes say something
            assert got["y.q"].unique().numel() > 3


def test_a_residual_net_on_zeros() -> None:
    agree(residual_net(3), x=torch.zeros(2, 2, 8, 8))
