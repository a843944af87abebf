"""Convolutions of few channels before a pooling: float kernels on integers, with edges that are in no tensor of the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import truequant as tq
from tests.parity.test_lint import agrees
from tests.programs import S8, U8, edge, hidden, random_codes, random_conv, random_linear, values_of
from truequant.errors import FileError
from truequant.integer import Int8Model, IntegerProgram, ProgramInput
from truequant.integer.nodes import Conv, Dequantize, Edge, MaxPool, Node, Quantize, Reshape
from truequant.runtimes import EdgeReader, census, onnx_bytes
from truequant.runtimes.onnxruntime.channels_last import readers_of
from truequant.runtimes.onnxruntime.pooled_sums import pooling_of

SIZE = 14


def net(
    *, channels: int = 1, kernel: int = 3, codes: tuple[int, int] = U8, zero_point: int = 0, low: int | None = None,
    high: int | None = None, pool: tuple[int, int, int] = (2, 2, 0), rank: int = 2, second: bool = True, bias: int = 5000,
    outputs: int = 6,
    weights: int = 127, per_tensor: bool = False, target: str = "onnxruntime",
) -> IntegerProgram:  # fmt: skip
    """Quantize, convolution and pooling, once or twice, flatten, linear: scales and zero points of their own."""
    generator = torch.Generator().manual_seed(kernel)
    low, high = codes[0] if low is None else low, codes[1] if high is None else high
    middle, after = edge(0.019, zero_point, codes), edge(0.03, 7, codes)
    edges: dict[str, Edge] = {"x.q": edge(1 / 64, 128 if codes == U8 else -3, codes), "first": middle, "pooled": middle}
    conv = random_conv(
        generator, "x.q", "first", (outputs, channels, *[kernel] * rank), scale=0.04 / weights,
        padding=kernel // 2, low=low, high=high, per_tensor=per_tensor,
    )  # fmt: skip
    offsets = torch.randint(-bias, bias + 1, conv.bias.shape, generator=generator).to(torch.int32)
    conv = replace(conv, bias=offsets, weight=conv.weight.clamp(-weights, weights))
    window, stride, padding = pool
    nodes: list[Node] = [
        Quantize("x", "x.q"), conv,
        MaxPool("first", "pooled", (window,) * rank, (stride,) * rank, (padding,) * rank, (1,) * rank, False),
    ]  # fmt: skip
    last, size = "pooled", (SIZE + 2 * padding - window) // stride + 1
    if second:
        edges |= {"second": after, "pooled2": after}
        layer = random_conv(generator, "pooled", "second", (5, outputs, *[3] * rank), scale=0.006, low=codes[0], high=codes[1])
        nodes += [layer, MaxPool("second", "pooled2", (2,) * rank, (2,) * rank, (0,) * rank, (1,) * rank, False)]
        outputs, last, size = 5, "pooled2", (size - 2) // 2
    edges |= {"flat": edges[last], "y.q": edge(0.4, 101 if codes == U8 else 5, codes)}
    features = outputs * size**rank
    nodes.append(Reshape(last, "flat", (0, -1)))
    nodes.append(random_linear(generator, "flat", "y.q", 10, features, scale=0.02, low=codes[0], high=codes[1]))
    nodes.append(Dequantize("y.q", "y"))
    inputs = (ProgramInput("x", "float32", (None, channels, *[SIZE] * rank)),)
    return IntegerProgram(inputs, tuple(nodes), edges, "y", target)


def images(of: IntegerProgram, count: int = 5) -> Tensor:
    source = of.edges["x.q"]
    shape = (count, *(int(n or 0) for n in of.inputs[0].shape[1:]))
    return values_of(random_codes(shape, source, torch.Generator().manual_seed(1)), source)


def first(of: IntegerProgram) -> Conv:
    return next(node for node in of.nodes if isinstance(node, Conv))


def exact(of: IntegerProgram, **options: Any) -> None:
    x = images(of)
    expected, found = Int8Model(of).codes(x), EdgeReader(of, **options).codes(x)
    assert found.keys() == of.edges.keys()
    for name, codes in expected.items():
        assert torch.equal(found[name].int(), codes.int()), name
        assert len(codes.unique()) > 5, f"'{name}' proves little"


SIGNED = {"codes": S8, "zero_point": -20, "target": "onnxruntime-vnni"}
VARIANTS = {
    "relu": {}, "two channels": {"channels": 2}, "three channels, 5 x 5": {"channels": 3, "kernel": 5},
    "no relu": {"zero_point": 90}, "a clamp inside the codes": {"zero_point": 90, "low": 70, "high": 201},
    "a relu above the lowest code": {"zero_point": 64, "low": 64}, "overlapping, padded windows": {"pool": (3, 2, 1)},
    "one weight scale": {"per_tensor": True}, "signed codes": SIGNED,
    "signed codes, relu": {"codes": S8, "zero_point": -128, "target": "onnxruntime-vnni"},
    "one axis": {"rank": 1, "kernel": 7}, "three axes": {"rank": 3},
    "flattened at once": {"second": False}, "4-bit weights": {"weights": 7}, "VNNI": {"target": "onnxruntime-vnni"},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_code_is_the_programs(variant: dict[str, Any]) -> None:
    of = net(**variant)
    assert pooling_of(of, first(of)) is not None
    exact(of, threads=2)


@pytest.mark.parametrize("level", ["extended", "all"])
@pytest.mark.parametrize("threads", [1, 2])
def test_at_every_level_that_fuses_the_others(level: Any, threads: int) -> None:
    exact(net(zero_point=90), level=level, threads=threads)


def test_the_first_layer_needs_no_fusion() -> None:
    """Float kernels on integers are exact at any level: what cannot be exact in this form is the second layer."""
    of = net(second=False)
    nodes = tuple(n for n in of.nodes if n.output not in ("flat", "y.q", "y"))
    of = replace(of, nodes=(*nodes, Dequantize("pooled", "y")), edges={k: of.edges[k] for k in ("x.q", "first", "pooled")})
    for level in ("none", "basic"):
        exact(of, level=level)


def test_images_of_any_size() -> None:
    of = net()
    nodes = tuple(n for n in of.nodes if n.output not in ("flat", "y.q", "y"))
    edges = {name: of.edges[name] for name in ("x.q", "first", "pooled", "second", "pooled2")}
    of = replace(of, nodes=(*nodes, Dequantize("pooled2", "y")), edges=edges)
    of = replace(of, inputs=(ProgramInput("x", "float32", (None, 1, None, None)),))
    assert pooling_of(of, first(of)) is not None
    reader = EdgeReader(of)
    for sizes in ((14, 14), (11, 23)):
        x = values_of(random_codes((3, 1, *sizes), of.edges["x.q"], torch.Generator().manual_seed(2)), of.edges["x.q"])
        for name, codes in Int8Model(of).codes(x).items():
            assert torch.equal(reader.codes(x)[name].int(), codes.int()), name


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("variant", [{}, {"zero_point": 90, "low": 70}, SIGNED, {"weights": 7}])
def test_lint_knows(variant: dict[str, Any], form: str) -> None:
    of = net(**variant)
    found = agrees(of, form, "all")
    assert found.fused["first"] == ("Conv" if form == "qdq" else "QLinearConv")
    assert "first" not in {m.node for m in found.of("weights")} or form == "qoperator"


def test_what_is_written_as_before() -> None:
    """A sum that could leave what float32 holds, many channels or products, another reader: integer kernels."""
    reach = 9 * 127 * 128
    for bias, pooled in ((2**24 - 1 - reach, True), (2**24 + reach, False)):
        of = net(bias=0)
        layer = replace(first(of), bias=torch.full((6,), bias, dtype=torch.int32))
        of = replace(of, nodes=tuple(layer if n.output == "first" else n for n in of.nodes))
        assert (pooling_of(of, layer) is not None) == pooled
        assert census(onnx_bytes(of))["QLinearConv"] == (1 if pooled else 2)
    for of in (net(channels=4), net(channels=3, kernel=11)):
        assert pooling_of(of, first(of)) is None
    of = net()
    assert pooling_of(of, first(of), "qoperator") is None
    for form in ("qoperator", "openvino"):
        written = onnx.load_from_string(onnx_bytes(of, form=form)).graph  # type: ignore[arg-type]
        assert "first" in {name for node in written.node for name in node.output}
    assert pooling_of(replace(of, target="tensorrt"), first(of)) is None
    twice = replace(of, nodes=(*of.nodes, Dequantize("first", "z")), outputs=["y", "z"])
    assert pooling_of(twice, first(of)) is None
    assert "first" not in hidden(twice)
    exact(twice)


def test_images_are_flattened_as_they_lie() -> None:
    of = net()
    (flat,) = (n for n in of.nodes if isinstance(n, Reshape))
    assert [layer.output for layer in readers_of(of, flat)] == ["y.q"]
    assert hidden(of) == {"first", "flat"}
    assert "Transpose" not in census(onnx_bytes(net(outputs=16)))
    # Behind a pooling of sums onnxruntime keeps no image channels-last.
    alone = net(second=False)
    assert hidden(alone) == {"first"}
    assert hidden(replace(of, outputs=["y", "flat.value"], nodes=(*of.nodes, Dequantize("flat", "flat.value")))) == {"first"}


def test_a_file_alone_is_verified(tmp_path: Path) -> None:
    of = net(zero_point=90, low=70)
    tq.export_onnx(of, tmp_path / "net.onnx", program=True)
    found = tq.verify(None, tmp_path / "net.onnx", [images(of)], runtimes=("onnxruntime",))
    row = found.runtimes["onnxruntime"]
    assert row.grade == "EXACT"
    assert row.codes_compared == 5 * sum(codes[0].numel() for codes in Int8Model(of).codes(images(of)).values())


def change(array: Any) -> Any:
    changed = array.copy()
    changed.flat[1] += 1
    return changed


def ulp(array: Any) -> Any:
    return np.nextafter(array, np.float32(np.inf))


FAULTS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a weight": ("first.weight", change, "first"), "a bias": ("first.bias", lambda b: b + 400, "first"),
    "multipliers by ulps": ("first.multiplier", lambda m: m * np.float32(1 + 1e-4), "first"),
    "a zero point": ("pooled.zero_point", lambda z: z + 1, "first"),
    "columns of the linear layer": ("y.q.weight", lambda w: w[:, ::-1], "y.q"),
}  # fmt: skip


@pytest.mark.parametrize(("tensor", "fault", "at"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_what_is_hidden_is_found_there(
    tensor: str, fault: Callable[[Any], Any], at: str, tmp_path: Path
) -> None:  # fmt: skip
    of = net(zero_point=90, low=70, weights=100)
    path = tmp_path / "net.onnx"
    tq.export_onnx(of, path, program=True)
    model = onnx.load(path)
    (constant,) = (c for c in model.graph.initializer if c.name == tensor)
    array = onnx.numpy_helper.to_array(constant)
    constant.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(fault(array).astype(array.dtype)), tensor))
    onnx.save(model, path)
    row = tq.verify(None, path, [images(of, 32)], runtimes=("onnxruntime",)).runtimes["onnxruntime"]
    assert row.grade != "EXACT"
    assert row.first_difference is not None
    assert row.first_difference.edge == at


def test_a_file_without_the_pooling_is_refused(tmp_path: Path) -> None:
    of = net()
    path = tmp_path / "net.onnx"
    tq.export_onnx(of, path, program=True)
    model = onnx.load(path)
    (pool,) = (n for n in model.graph.node if n.name == "pooled")
    pool.op_type = "AveragePool"
    onnx.save(model, path)
    with pytest.raises(FileError, match="no tensor has the name of an edge"):
        tq.verify(None, path, [images(of)], runtimes=("onnxruntime",))


@pytest.mark.parametrize("odd", ["in a circle", "without an input"])
def test_odd_nodes_behind_the_codes_are_refused(odd: str, tmp_path: Path) -> None:
    of = net()
    path = tmp_path / "net.onnx"
    tq.export_onnx(of, path, program=True)
    model = onnx.load(path)
    nodes = {n.name: n for n in model.graph.node}
    if odd == "in a circle":
        nodes["pooled.places"].input[0] = "pooled.places"
    else:
        del nodes["pooled.scaled"].input[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FileError, match="no tensor has the name of an edge"):
        tq.verify(None, path, [images(of)], runtimes=("onnxruntime",))


def test_a_model_as_users_write_it(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Digits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3)
            self.head = nn.Linear(8 * 7 * 7, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.first(x)), 2)
            x = F.max_pool2d(F.relu(self.second(x)), 2)
            scores: Tensor = self.head(x.flatten(1))
            return scores

    x = torch.rand(9, 3, 32, 32)
    qat = tq.calibrate(tq.prepare(Digits(), x), [x]).eval()
    tq.export_onnx(tq.convert(qat), tmp_path / "digits.onnx", program=True)
    tq.assert_exact(qat, tmp_path / "digits.onnx", [x])
