"""What a file promises on other machines: a line a runtime, true of what that runtime's file holds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import truequant as tq
from tests.parity.test_saturation import add
from tests.programs import S8, U8, edge, program, random_conv, residual_net, values_of
from truequant.integer import IntegerProgram
from truequant.integer.nodes import AveragePool, Conv, Edge, Linear, MatMul, Node, Normalize
from truequant.runtimes import RUNTIMES, machine, promises
from truequant.runtimes.openvino.promises import sums_beyond_float32
from truequant.runtimes.openvino.saturation import openvino_saturating, saturates_in_openvino
from truequant.runtimes.saturation import saturates, saturating_layers

BOTH = ("onnxruntime", "openvino")
EVERYWHERE = "the same codes on every x86 CPU, with VNNI or without, with FMA or without"
NET = residual_net(power_of_two=True)  # no add of it needs FMA
X = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def one(node: Node, *names: str, codes: tuple[int, int] = U8, zero_point: int = 0, rank: int = 4) -> IntegerProgram:
    edges: dict[str, Edge] = {name: edge(0.02, zero_point, codes) for name in (*names, "y")}
    return program(node, edges, *names, rank=rank)


def conv(shape: tuple[int, ...], groups: int = 1) -> Conv:
    return random_conv(torch.Generator().manual_seed(0), "x", "y", shape, groups=groups)


def test_a_line_a_runtime() -> None:
    assert promises(NET) == (f"onnxruntime, promised: {EVERYWHERE}",)
    assert promises(NET, BOTH) == tuple(f"{name}, promised: {EVERYWHERE}" for name in BOTH)
    assert promises(NET, ("reference", "torch.export")) == ()


def test_between_float_islands() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    config = dataclasses.replace(tq.QConfig.preset("w7a8"), rules=(tq.Rule(nn.LayerNorm, None),))
    qat = tq.prepare(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)), x, config)
    tq.calibrate(qat, [x])
    found = tq.verify(qat, tq.convert(qat.eval()), [x], runtimes=BOTH)
    assert found.promise == tuple(f"{name}, promised between float islands: {EVERYWHERE}" for name in BOTH)


def test_norms_are_promised_by_onnxruntime_alone() -> None:
    norm = Normalize("x", "y", "layer", (-1,), 0, 1e-5, False, 0, torch.ones(9), None, 0, 255)
    p = one(norm, "x")
    p = dataclasses.replace(p, inputs=(dataclasses.replace(p.inputs[0], shape=(None, 2, 9, 9)),))
    assert promises(p, BOTH) == (
        f"onnxruntime, promised: {EVERYWHERE}",
        "openvino, promised: the same codes on every x86 CPU but",
        "openvino, any machine: the steps of norms are joined, and those in float64 taken in float32, in 'y'",
    )
    assert {name: RUNTIMES[name].floats(p) for name in BOTH} == {"onnxruntime": (), "openvino": ("y",)}


def test_exceptions_stand_with_their_runtime() -> None:
    signed = dataclasses.replace(residual_net(), target="onnxruntime-vnni")
    lines = promises(signed, BOTH)
    assert [line for line in lines if "promised" in line] == [
        f"{name}, promised: the same codes on every x86 CPU but" for name in BOTH
    ]
    for name in BOTH:
        assert any(
            line.startswith(f"{name}, x86 with AVX2, without VNNI: other codes, because pairs saturate") for line in lines
        )
    # OpenVINO's form adds by tables.
    lines = promises(add("onnxruntime")[0], BOTH)
    assert [line.split(",")[0] for line in lines if ", x86 without FMA:" in line] == ["onnxruntime"]
    assert lines[-1] == f"openvino, promised: {EVERYWHERE}"


def test_what_the_form_for_openvino_leaves_to_it() -> None:
    pool = AveragePool("x", "y", (2, 2), (2, 2), (0, 0), True, "portable", 0, 255)
    (_, line) = promises(one(pool, "x"), ("openvino",))
    assert line == "openvino, any machine: averages over uneven windows are its own float32 sums, in 'y'"
    wide = Linear("x", "y", torch.full((1, 600), 127, dtype=torch.int8), torch.ones(1), torch.zeros(1).int(), 0, 255)
    assert 600 * 127 * 255 > 2**24 > 500 * 127 * 255
    assert sums_beyond_float32(one(wide, "x", rank=2)) == ["y"]
    narrow = dataclasses.replace(wide, weight=wide.weight[:, :500])
    assert sums_beyond_float32(one(narrow, "x", rank=2)) == []
    assert sums_beyond_float32(one(dataclasses.replace(narrow, bias=torch.tensor([2**23]).int()), "x", rank=2)) == ["y"]
    (_, line) = promises(one(wide, "x", rank=2), ("openvino",))
    assert line == "openvino, any machine: sums at or above 2^24, which not every input has, are rounded twice in 'y'"


@pytest.mark.parametrize(("length", "beyond"), [(256, False), (259, True), (None, True)])
def test_products_of_activations_by_the_length_of_a_row(length: int | None, beyond: bool) -> None:
    p = one(MatMul("a", "b", "y", 0, 255), "a", "b", rank=3)
    shapes = ((None, 4, length), (None, length, 4))
    p = dataclasses.replace(p, inputs=tuple(dataclasses.replace(i, shape=s) for i, s in zip(p.inputs, shapes, strict=True)))
    assert bool(sums_beyond_float32(p)) is beyond


def test_what_saturates_where() -> None:
    """Depthwise layers do not; products of activations do, with any zero point, unless their codes are few."""
    depthwise, doubled, ordinary = (one(conv(*c), "x") for c in (((4, 1, 3, 3), 4), ((8, 1, 3, 3), 4), ((4, 4, 3, 3), 1)))
    assert [bool(saturating_layers(p)) for p in (depthwise, doubled, ordinary)] == [False, True, True]
    assert [bool(openvino_saturating(p)) for p in (depthwise, doubled, ordinary)] == [False, True, True]
    cases = ((U8, 0), (U8, 128), (S8, 0), ((0, 15), 8))
    products = [one(MatMul("a", "b", "y", *c), "a", "b", codes=c, zero_point=z, rank=3) for c, z in cases]
    assert [bool(openvino_saturating(p)) for p in products] == [True, True, True, False]
    (_, node) = ordinary.nodes[:2]
    assert isinstance(node, Conv)
    for target, unsigned in (("onnxruntime", True), ("onnxruntime-sse", True), ("onnxruntime-vnni", False)):
        p = dataclasses.replace(ordinary, target=target)
        assert saturates(p, node) is saturates_in_openvino(p, node) is unsigned


def test_nothing_is_promised_where_integers_differ() -> None:
    """A file for CPUs with VNNI only, on whichever CPU this is."""
    p = dataclasses.replace(one(conv((4, 4, 3, 3)), "x"), target="onnxruntime-vnni")
    p = dataclasses.replace(p, inputs=(dataclasses.replace(p.inputs[0], shape=(None, 4, 9, 9)),))
    x = values_of(torch.full((2, 4, 9, 9), 255), p.edges["x"])
    found = tq.verify(None, p, [x], runtimes=BOTH)
    for name in BOTH:
        heading = next(line for line in found.promise if line.startswith(name))
        broken = f"{name}: nothing is promised, since it computes other codes from equal ones on this machine"
        assert (heading == broken) is bool(found.runtimes[name].origins) is not machine().vnni
    assert promises(NET, BOTH, ("openvino",))[1].startswith("openvino: nothing is promised")
