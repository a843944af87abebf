"""Activations of 16 bits: int64 sums in the reference program, graded but never EXACT in onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from tests.interpret import interpret
from tests.programs import codes_in, edge, program, random_codes, random_conv, random_linear, values_of
from truequant.errors import ConversionError, ExportError, SchemeError, VerificationError
from truequant.integer import Int8Model, IntegerProgram, float_sums
from truequant.integer.nodes import (
    Add,
    AveragePool,
    Clamp,
    Concat,
    Dequantize,
    GlobalAverage,
    Linear,
    MatMul,
    MaxPool,
    Mul,
    Node,
    Pad,
    Slice,
    Sub,
    Table,
    Transpose,
    Upsample,
)
from truequant.runtimes import export_onnx, onnx_bytes, promises, require_integer_kernels
from truequant.runtimes.packages import onnx
from truequant.schemes import QNN, TENSORRT, int16, uint16

U16, S16, U8 = (0, 65535), (-32768, 32767), (0, 255)
WIDE = [pytest.param(edge(0.001, 30001, U16), id="u16"), pytest.param(edge(0.002, -77, S16), id="s16")]
POINTWISE: list[Node] = [
    Add("x", "w", "y", "portable", 0, 65535), Mul("x", "w", "y", "portable", 5, 65000), Sub("x", "w", "y", 0, 65535),
]  # fmt: skip


def sized(p: IntegerProgram, shape: tuple[int | None, ...]) -> IntegerProgram:
    return replace(p, inputs=(replace(p.inputs[0], shape=shape),))


def agrees(p: IntegerProgram, *names: str, seed: int = 0, shape: tuple[int, ...] = (2, 4, 5, 6)) -> dict[str, Tensor]:
    """The reference program's codes, which are the oracle's."""
    generator = torch.Generator().manual_seed(seed)
    feeds = {f"{n}.value": values_of(random_codes(shape, p.edges[n], generator), p.edges[n]) for n in names}
    found = Int8Model(p).codes(*feeds.values())
    expected = interpret(p, feeds)
    for name, codes in found.items():
        assert np.array_equal(codes.numpy().astype(np.int64), expected[name]), name
    return found


@pytest.mark.parametrize("x", WIDE)
@pytest.mark.parametrize(("shape", "groups"), [((6, 4, 3, 3), 1), ((6, 2, 3, 3), 2), ((4, 1, 3, 3), 4)])
def test_conv_sums_of_wide_codes(x: tq.integer.nodes.Edge, shape: tuple[int, ...], groups: int) -> None:
    node = random_conv(torch.Generator().manual_seed(1), "x", "y", shape, scale=1e-4, padding=1, groups=groups, high=65535)
    found = agrees(program(node, {"x": x, "y": edge(0.004, 32000, U16)}, "x"), "x")
    assert len(found["y"].unique()) > 100


def test_a_sum_beyond_int32() -> None:
    """600 codes of 65,535 times 127 reach 5e9: int32 would wrap."""
    weight = torch.full((2, 600), 127, dtype=torch.int8)
    node = Linear("x", "y", weight, torch.tensor([1e-4, 3e-4]), torch.tensor([2**30, -5], dtype=torch.int32), 0, 65535)
    p = program(node, {"x": edge(0.001, 0, U16), "y": edge(0.01, 7, U16)}, "x", rank=2)
    codes = torch.full((1, 600), 65535)
    x = {"x.value": values_of(codes, p.edges["x"])}
    found = Int8Model(p).codes(*x.values())
    assert np.array_equal(found["y"].numpy(), interpret(p, x)["y"])
    assert 600 * 65535 * 127 + 2**30 > 2**31
    assert found["y"].tolist()[0] == [round((600 * 65535 * 127 + 2**30) * 1e-7 / 0.01) + 7, 65535]


def test_eight_bits_still_refuse_a_sum_beyond_int32() -> None:
    node = Linear("x", "y", torch.full((1, 70_000), 127, dtype=torch.int8), torch.ones(1), torch.zeros(1).int(), 0, 255)
    p = program(node, {"x": edge(1.0, 0, U8), "y": edge(1e7, 0, U8)}, "x", rank=2)
    with pytest.raises(ConversionError, match="an accumulator leaves int32"):
        Int8Model(p)(torch.full((1, 70_000), 255.0))


@pytest.mark.parametrize("x", WIDE)
def test_wide_linear_without_a_quantizer_behind_it(x: tq.integer.nodes.Edge) -> None:
    node = random_linear(torch.Generator().manual_seed(2), "x", "y", 3, 40)
    p = program(node, {"x": x}, "x", rank=2)
    generator = torch.Generator().manual_seed(0)
    feeds = {"x.value": values_of(random_codes((4, 40), x, generator), x)}
    assert np.array_equal(Int8Model(p)(*feeds.values()).numpy(), interpret(p, feeds)["y"])


@pytest.mark.parametrize(("a", "b"), [(U16, U16), (U16, U8), (S16, S16)])
def test_products_of_wide_codes(a: tuple[int, int], b: tuple[int, int]) -> None:
    edges = {"x": edge(0.001, 5 if a == S16 else 30000, a), "w": edge(0.002, 9, b), "y": edge(0.9, 100, U16)}
    node = MatMul("x", "w", "y", 0, 65535)
    inputs, quantizers = codes_in("x", "w", rank=3)
    p = IntegerProgram(inputs, (*quantizers, node, Dequantize("y", "y.value")), edges, "y.value", "onnxruntime")
    agrees(p, "x", "w", shape=(2, 6, 6))


@pytest.mark.parametrize("node", POINTWISE, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("other", [edge(0.05, 100, U8), edge(0.002, 30000, U16)], ids=["u8", "u16"])
def test_pointwise_ops_are_the_oracles_and_onnxruntimes(node: Node, other: tq.integer.nodes.Edge) -> None:
    """One float32 operation an element has no order of summation."""
    edges = {"x": edge(0.001, 30001, U16), "w": other, "y": edge(0.003, 20000, U16)}
    p = program(node, edges, "x", "w")
    agrees(p, "x", "w")
    assert float_sums(p) == ()
    _runs_exactly(p, ("x", "w"), (2, 4, 50, 60))


@pytest.mark.parametrize("x", WIDE)
@pytest.mark.parametrize(
    "node",
    [
        MaxPool("x", "y", (3, 2), (2, 1), (1, 1), (1, 1), True), MaxPool("x", "y", (2, 2), (1, 1), (1, 1), (2, 2), False),
        Pad("x", "y", ((1, 0), (2, 3))), Upsample("x", "y", (2, 3)), Clamp("x", "y", 11, 20_000), Slice("x", "y", 2, 1, 4, 2),
        Transpose("x", "y", (0, 2, 3, 1)), Concat(("x", "x"), "y", 1),
    ],
    ids=lambda n: type(n).__name__,
)  # fmt: skip
def test_wide_codes_move_exactly(x: tq.integer.nodes.Edge, node: Node) -> None:
    p = program(node, {"x": x, "y": x}, "x")
    agrees(p, "x")
    _runs_exactly(p, ("x",), (2, 4, 5, 6))


@pytest.mark.parametrize(("read", "written"), [(U16, U8), (U8, U16), (S16, U16), (U16, S16)])
def test_between_widths_lies_a_table(read: tuple[int, int], written: tuple[int, int]) -> None:
    x, y = edge(0.001, 0 if read[0] else 300 % (read[1] + 1), read), edge(0.01, 3, written)
    entries = ((torch.arange(read[0], read[1] + 1) - x.zero_point) * 0.1).round().add(3).clamp(*written)
    node = Table("x", "y", entries.to(torch.int32 if written == U16 else torch.int16), "requantize")
    p = program(node, {"x": x, "y": y}, "x")
    agrees(p, "x")
    _runs_exactly(p, ("x",), (1, 2, 40, 40))


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3)])
def test_averages_of_wide_codes(kernel: tuple[int, int]) -> None:
    x, y = edge(0.001, 30001, U16), edge(0.0007, 20000, U16)
    agrees(program(GlobalAverage("x", "y", (-2, -1), True, 0, 65535), {"x": x, "y": y}, "x"), "x")
    agrees(program(AveragePool("x", "y", kernel, (1, 1), (1, 1), True, "portable", 0, 65535), {"x": x, "y": y}, "x"), "x")


def test_a_mean_beyond_int32() -> None:
    """50,000 codes of 65,535 less zero point reach 3e9."""
    p = program(GlobalAverage("x", "y", (-2, -1), False, 0, 65535), {n: edge(1.0, 0, U16) for n in "xy"}, "x")
    assert Int8Model(p).codes(torch.full((1, 1, 250, 200), 65000.0))["y"].tolist() == [[65000]]


def _runs_exactly(p: IntegerProgram, names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    feeds = [values_of(random_codes(shape, p.edges[n], generator), p.edges[n]) for n in names]
    found = tq.verify(None, Int8Model(p), [feeds[0] if len(feeds) == 1 else tuple(feeds)])
    assert found.runtimes["onnxruntime"].grade == "EXACT", str(found)


class Mixed(nn.Module):
    """Sums, products, tables, poolings and a residual, over edges of 8 and 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.c1, self.c2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c3, self.out = nn.Conv2d(16, 8, 3, padding=1, groups=8), nn.Linear(8, 10)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        a = torch.relu(self.c1(x))
        b = torch.relu(a + self.c2(a)) * 1
        c = torch.cat([nn.functional.max_pool2d(b, 2), nn.functional.avg_pool2d(torch.sigmoid(b), 2)], 1)
        c = nn.functional.interpolate(nn.functional.pad(self.c3(c), (1, 1)), scale_factor=2.0)
        tokens = c.flatten(2).transpose(1, 2)
        attended = tokens @ (tokens.transpose(1, 2) @ tokens)
        return self.out(attended.mean(1) - self.embed(rows))


@pytest.fixture(scope="module", params=["uint16", "int16"])
def mixed(request: pytest.FixtureRequest) -> tuple[nn.Module, Int8Model, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    wide = tq.QuantScheme({"uint16": uint16, "int16": int16}[request.param])
    names = ["c2", "add_0", "c3", "embed", "sigmoid_0", "matmul_1", "mean_0"]
    config = tq.QConfig().with_rules(*(tq.Rule(name, output=wide) for name in names))
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(0, 7, (4,))) for _ in range(3)]
    qat = tq.prepare(Mixed(), batches[0], config)
    tq.calibrate(qat, batches)
    optimizer = torch.optim.SGD(qat.train().parameters(), 0.01)
    for batch in batches:
        optimizer.zero_grad()
        qat(*batch).square().mean().backward()
        optimizer.step()
    return qat, tq.convert(qat.eval()), batches


def test_a_mixed_model_is_exact_in_the_reference(mixed: tuple[nn.Module, Int8Model, list[tuple[Tensor, Tensor]]]) -> None:
    qat, int8, batches = mixed
    assert sum(e.wide for e in int8.program.edges.values()) >= 7
    assert sum(not e.wide for e in int8.program.edges.values()) >= 3
    tq.assert_exact(qat, int8, batches, runtimes=("reference",))
    feeds = dict(zip((i.name for i in int8.program.inputs), batches[0], strict=True))
    expected = interpret(int8.program, feeds)
    for name, codes in int8.codes(*batches[0]).items():
        assert np.array_equal(codes.numpy().astype(np.int64), expected[name]), name


def test_a_mixed_model_is_graded_and_never_exact(mixed: tuple[nn.Module, Int8Model, list[tuple[Tensor, Tensor]]]) -> None:
    qat, int8, batches = mixed
    found = tq.verify(qat, int8, batches, runtimes=("onnxruntime",))
    report = found.runtimes["onnxruntime"]
    assert report.grade != "EXACT"
    assert report.codes_different < 0.02 * report.codes_compared
    assert report.exact_between_islands, str(found)
    assert set(report.island_origins) <= set(report.float_sums) == set(float_sums(int8.program))
    assert "never EXACT, since it computes in float32, in its own order, at 'c2'" in str(found)
    assert report.to_dict()["float_sums"] == list(report.float_sums)
    with pytest.raises(VerificationError):
        tq.assert_exact(qat, int8, batches, runtimes=("onnxruntime",))


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_a_mixed_file(form: str, mixed: tuple[nn.Module, Int8Model, list[tuple[Tensor, Tensor]]], tmp_path: Path) -> None:
    _, int8, batches = mixed
    export_onnx(int8, tmp_path / "m.onnx", form=form, program=True)  # type: ignore[arg-type]
    model = onnx().load(str(tmp_path / "m.onnx"))
    assert [o.version for o in model.opset_import if o.domain == ""] == [21]
    quantizers = {n.name: n for n in model.graph.node if n.op_type == "QuantizeLinear"}
    constants = {c.name: c for c in model.graph.initializer}
    kinds = {constants[quantizers["c2.quantize"].input[2]].data_type}
    assert kinds <= {onnx().TensorProto.UINT16, onnx().TensorProto.INT16}
    assert tq.verify(None, tmp_path / "m.onnx", batches).runtimes["onnxruntime"].exact_between_islands
    int8.save(tmp_path / "m.tq")
    again = tq.load(tmp_path / "m.tq").codes(*batches[0])
    assert all(torch.equal(again[name], codes) for name, codes in int8.codes(*batches[0]).items())


def test_plan_promise_and_export_say_so(mixed: tuple[nn.Module, Int8Model, list[tuple[Tensor, Tensor]]]) -> None:
    qat, int8, _ = mixed
    assert "note: 'c2.output' has 16 bits: onnxruntime sums such codes in float32, never EXACT" in str(qat.binding.plan)
    assert any("sums over 16-bit codes run in float32" in line for line in promises(int8.program))
    with pytest.raises(ExportError, match=r"OpenVINO's form has no codes of 16 bits"):
        onnx_bytes(int8.program, form="openvino")


def test_no_equal_codes_make_it_exact() -> None:
    """A grade is a promise: that no code differed on these inputs is none."""
    node = Linear("x", "y", torch.ones(1, 2, dtype=torch.int8), torch.ones(1), torch.zeros(1).int(), 0, 65535)
    p = sized(program(node, {n: edge(1.0, 0, U16) for n in "xy"}, "x"), (None, 2))
    report = tq.verify(None, Int8Model(p), [torch.tensor([[3.0, 4.0]])]).runtimes["onnxruntime"]
    assert (report.codes_different, report.grade, report.distance) == (0, "EXACT BETWEEN ISLANDS", "WITHIN 1")


def test_wide_linear_never_becomes_a_kernel_that_quantizes_again() -> None:
    """MatMulNBits would quantize the activations in a way of its own: nearly all codes would differ."""
    generator = torch.Generator().manual_seed(0)
    node = random_linear(generator, "x", "y", 32, 64, scale=1e-5, high=65535)
    p = sized(program(node, {"x": edge(0.001, 30000, U16), "y": edge(0.01, 20000, U16)}, "x"), (None, 5, 64))
    kinds = require_integer_kernels(p, onnx_bytes(p))
    assert kinds["Gemm"] == 1
    assert "MatMulNBits" not in kinds


@pytest.mark.parametrize("dtype", [uint16, int16])
def test_targets_that_lack_the_width_refuse_it(dtype: tq.schemes.IntegerType) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(2, 4)
    config = tq.QConfig().for_target(TENSORRT)
    scheme = tq.QuantScheme(dtype, symmetric=True if dtype is int16 else None)
    with pytest.raises(SchemeError, match=r"16 bits|signed and symmetric"):
        tq.plan(model, x, config.with_rules(tq.Rule("0", output=scheme)))


def test_a_target_with_kernels_of_that_width_takes_it_without_a_note() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(2, 4)
    config = tq.QConfig(activation=tq.QuantScheme(uint16)).for_target(QNN)
    assert config.activation is not None
    assert config.activation.dtype is uint16
    assert tq.plan(model, x, config).notes == ()


def test_training_kernels_know_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    results = []
    for level in ("reference", None):
        if level is not None:
            monkeypatch.setenv("TRUEQUANT_KERNELS", level)
        else:
            monkeypatch.delenv("TRUEQUANT_KERNELS")
        quantizer = tq.FakeQuantize(tq.QuantScheme(uint16))
        quantizer(x)
        y = x.clone().requires_grad_()
        z = quantizer(y)
        z.square().sum().backward()
        results.append((z.detach(), y.grad, quantizer.scale.clone(), quantizer.eval()(x)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
