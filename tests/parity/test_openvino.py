"""OpenVINO computes the program's integers: every edge, in its int8 kernels."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import truequant as tq
from tests.models import FAMILIES
from tests.programs import S8, edge, f32, program, random_codes, random_conv, random_linear, values_of
from truequant.integer import Int8Model, IntegerProgram
from truequant.integer.nodes import Add, Clamp, Conv, Edge, GlobalAverage, MatMul, MaxPool, Mul, Pad, Slice, Sub, Table
from truequant.runtimes.openvino.model import OpenvinoEdges, OpenvinoModel
from truequant.runtimes.openvino.saturation import saturates_in_openvino
from truequant.runtimes.openvino.session import compiled, run


def assert_same(p: IntegerProgram, *inputs: Tensor) -> dict[str, int]:
    """Every edge and every output of reference and OpenVINO; the kernels that run."""
    shaped = (dataclasses.replace(i, shape=(None, *x.shape[1:])) for i, x in zip(p.inputs, inputs, strict=True))
    p = dataclasses.replace(p, inputs=tuple(shaped))
    model, compiled = Int8Model(p), OpenvinoModel(p)
    found = OpenvinoEdges(p).codes(*inputs)
    for name, codes in model.codes(*inputs).items():
        assert codes.shape == found[name].shape
        assert torch.equal(codes.int(), found[name].int()), name
    assert torch.equal(model(*inputs), compiled(*inputs))
    return compiled.kernels()


def calibrated(name: str, preset: str) -> Int8Model:
    torch.manual_seed(0)
    family = FAMILIES[name]
    qat = tq.prepare(family.make(), family.inputs(), preset)
    tq.calibrate(qat, [family.inputs()])
    return tq.convert(qat)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "preset"),
    [*itertools.product(("LeNet, tanh", "ResNet", "U-Net"), ("int8", "w8a8", "w8a8-pow2", "w4a8")), ("MobileNetV2", "int8")],
)
def test_models(name: str, preset: str) -> None:
    int8, family = calibrated(name, preset), FAMILIES[name]
    for batch in (1, 5):
        x = torch.cat([family.inputs() for _ in range(3)])[:batch]
        found, outputs = OpenvinoEdges(int8.program).codes(x), tq.compile(int8, "openvino", threads=batch % 2 + 1)(x)
        for edge_name, codes in int8.codes(x).items():
            assert torch.equal(codes.int(), found[edge_name].int()), edge_name
        assert torch.equal(int8(x), outputs)
    halved = [n for n in int8.program.nodes if isinstance(n, Conv) and saturates_in_openvino(int8.program, n)]
    assert OpenvinoModel(int8.program).kernels()["Convolution u8"] == int8.ops()["Conv"] + len(halved)
    assert bool(halved) is (preset != "int8")


@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize(
    "case",
    [
        {"weight_shape": (8, 3, 3, 3), "stride": 2, "padding": 1},
        {"weight_shape": (6, 1, 3, 3), "groups": 6, "padding": 1},
        {"weight_shape": (6, 2, 3, 3), "groups": 3, "dilation": 2},
        {"weight_shape": (32, 4, 3, 3), "groups": 8, "stride": 2, "padding": ((0, 1), (2, 1))},
        {"weight_shape": (4, 3, 2, 4), "padding": ((0, 1), (2, 1))},
        {"weight_shape": (4, 3, 5)},
        {"weight_shape": (4, 2, 2, 3, 2), "padding": 1},
    ],
)
def test_convolutions(case: dict[str, object], zero_point: int) -> None:
    generator = torch.Generator().manual_seed(zero_point)
    shape = case["weight_shape"]
    assert isinstance(shape, tuple)
    x = edge(0.02, zero_point)
    for y, low, high in ((edge(0.7, 0), 0, 255), (edge(0.25, 200), 180, 220)):
        conv = random_conv(generator, "x", "y", low=low, high=high, **case)  # type: ignore[arg-type]
        size = (3, shape[1] * conv.groups, *(9 for _ in shape[2:]))
        assert_same(program(conv, {"x": x, "y": y}, "x", rank=len(shape)), values_of(random_codes(size, x, generator), x))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("to_float", [False, True])
def test_linear(axes: int, to_float: bool) -> None:
    generator = torch.Generator().manual_seed(axes)
    x, y = edge(0.02, 77), edge(0.9, 11)
    node = random_linear(generator, "x", "y", 13, 24, low=0 if to_float else 11)
    edges = {"x": x} if to_float else {"x": x, "y": y}
    size = (4, *(3,) * (axes - 2), 24)
    assert_same(program(node, edges, "x", rank=axes), values_of(random_codes(size, x, generator), x))


A, B = (v.flatten() for v in torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"))


@pytest.mark.parametrize("kind", [Add, Mul, Sub])
@pytest.mark.parametrize("scales", [(1.0, 1.0, 2.0), (0.25, 0.5, 0.25), (0.013, 0.027, 0.031)])
def test_all_pairs_of_codes(kind: type[Add | Mul], scales: tuple[float, ...]) -> None:
    a, b, y = (edge(f32(s), z) for s, z in zip(scales, (3, 200, 77), strict=True))
    node = kind("a", "b", "y", *(() if kind is Sub else ("onnxruntime",)), 0, 255)  # type: ignore[call-arg]
    assert_same(program(node, {"a": a, "b": b, "y": y}, "a", "b", rank=1), values_of(A, a), values_of(B, b))


@pytest.mark.parametrize(
    "node",
    [
        MaxPool("x", "y", (3, 3), (2, 2), (1, 1), (1, 1), True),
        MaxPool("x", "y", (3, 2), (1, 2), (1, 0), (2, 1), False),
        Clamp("x", "y", 77, 90),
        Slice("x", "y", 3, 0, None, 2),
        Pad("x", "y", ((1, 0), (2, 3))),
        Table("x", "y", torch.arange(255, -1, -1).to(torch.int16), "turned"),
        GlobalAverage("x", "y", (-2, -1), True, 0, 255),
        GlobalAverage("x", "y", (-3,), False, 0, 255),
    ],
    ids=lambda n: type(n).__name__,
)
def test_other_nodes(node: MaxPool) -> None:
    x = edge(0.05, 77)
    p = program(node, {"x": x, "y": x}, "x")
    assert_same(p, values_of(random_codes((3, 4, 9, 8), x, torch.Generator().manual_seed(1)), x))


def test_products_of_activations() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b, y = edge(0.02, 100), edge(0.03, 20), edge(0.9, 120)
    p = program(MatMul("a", "b", "y", 0, 255), {"a": a, "b": b, "y": y}, "a", "b", rank=3)
    inputs = [values_of(random_codes(size, e, generator), e) for size, e in (((3, 5, 16), a), ((3, 16, 7), b))]
    assert_same(p, *inputs)


@pytest.mark.parametrize("x", [edge(0.5, 3), edge(0.5, -3, S8)], ids=["u8", "s8"])
def test_quantize_ties_infinities_and_nan(x: Edge) -> None:
    p = program(Clamp("x", "y", x.qmin, x.qmax), {"x": x, "y": x}, "x", rank=1)
    special = torch.tensor([0.25, 0.75, -0.25, 1.25, math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-45, 3e38, 127.25])
    assert_same(p, torch.cat([special, torch.linspace(-200, 200, 3203)]))


def test_export_in_the_form_for_openvino(tmp_path: Path) -> None:
    """The file that is written computes the program's codes in OpenVINO, and is no form for onnxruntime's kernels."""
    generator = torch.Generator().manual_seed(3)
    x, y = edge(0.02, 77), edge(0.9, 11)
    p = program(random_linear(generator, "x", "y", 13, 24, low=11), {"x": x, "y": y}, "x", rank=2)
    p = dataclasses.replace(p, inputs=tuple(dataclasses.replace(i, shape=(None, 24)) for i in p.inputs))
    path = tmp_path / "model.onnx"
    assert tq.export_onnx(p, path, form="openvino") == path.stat().st_size
    request = compiled(path.read_bytes()).create_infer_request()
    inputs = values_of(random_codes((5, 24), x, generator), x)
    assert torch.equal(run(request, {"x.value": inputs})["y.value"], Int8Model(p)(inputs))


def test_signals_are_handled_after_two_models_at_once() -> None:
    """In a process of its own, which a signal would end. Such signals: Ctrl-C, and children's ends under a DataLoader."""
    script = """
import faulthandler, signal
faulthandler.enable()  # signals have a stack of their own, as in pytest
from tests.programs import residual_net
from truequant.runtimes.openvino.model import OpenvinoModel
first, second = OpenvinoModel(residual_net()), OpenvinoModel(residual_net())
del first, second
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
signal.raise_signal(signal.SIGUSR1)
assert seen
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


@pytest.mark.parametrize(("channels", "outputs", "kernel"), [(72, 24, 1), (24, 72, 1), (32, 8, 1), (8, 40, 3)])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_pixel(channels: int, outputs: int, kernel: int, batch: int) -> None:
    """Squeeze and excite on one image: with AVX-512, OpenVINO's own scaling of channels beyond a block of 16 is wrong."""
    generator = torch.Generator().manual_seed(channels)
    layer = random_conv(generator, "x", "y", (outputs, channels, kernel, kernel))
    layer = dataclasses.replace(layer, weight=layer.weight // 2)
    p = program(layer, {"x": edge(0.02, 7), "y": edge(0.5, 3)}, "x")
    codes = random_codes((batch, channels, kernel, kernel), p.edges["x"], generator)
    assert_same(p, values_of(codes, p.edges["x"]))
