"""Both forms of the ONNX file are the program: QDQ with all optimizations, QOperator at every level."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch

import truequant as tq
from tests.models import FAMILIES
from tests.programs import edge, program, random_codes, random_conv, random_linear, residual_net, values_of
from truequant.errors import ArgumentError, ExportError
from truequant.integer import Int8Model
from truequant.runtimes import CompiledModel, EdgeReader, census, onnx_bytes

LEVELS = ("none", "basic", "extended", "all")


@cache
def int8_of(name: str, config: str | tq.QConfig) -> tuple[Int8Model, torch.Tensor]:
    torch.manual_seed(0)
    family = FAMILIES[name]
    x = family.inputs()
    qat = tq.prepare(family.make(), x, config)
    tq.calibrate(qat, [x])
    return tq.convert(qat), x


def signed() -> tq.QConfig:
    """Activations of int8, and weights of 7 bits, which leave them an exact form."""
    scheme = tq.QuantScheme(tq.types.int8)
    return dataclasses.replace(tq.QConfig.preset("w7a8"), activation=scheme, input=scheme, output=scheme)


def assert_exact(int8: Int8Model, x: torch.Tensor, **options: str) -> None:
    found = EdgeReader(int8.program, **options).codes(x)  # type: ignore[arg-type]
    for name, codes in int8.codes(x).items():
        assert torch.equal(codes.int(), found[name].int()), (name, options)
    assert torch.equal(int8(x), CompiledModel(int8.program, **options)(x))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", ["w8a8", "w4a8", "w8a8-pow2", "signed"])
@pytest.mark.parametrize("name", ["MobileNetV3", "U-Net"])
def test_every_form_and_level(name: str, config: str) -> None:
    """Residual sums, products, pooling, tables, transposed convolutions in sub-pixel form."""
    int8, x = int8_of(name, signed() if config == "signed" else config)
    assert_exact(int8, x, form="qdq", level="all")
    for level in LEVELS:
        assert_exact(int8, x, form="qoperator", level=level)


@pytest.mark.parametrize("level", LEVELS)
def test_the_kernels_of_the_qoperator_form_run_by_name(level: str) -> None:
    int8, _ = int8_of("MobileNetV3", "w8a8")
    kernels = census(onnx_bytes(int8.program, form="qoperator"), level)  # type: ignore[arg-type]
    ops = int8.ops()
    assert kernels["QLinearConv"] == ops["Conv"]
    assert kernels["QLinearAdd"] == ops["Add"]
    assert kernels["QLinearMul"] == ops["Mul"]
    assert kernels["QGemm"] == ops["Linear"]
    assert kernels["QLinearGlobalAveragePool"] == ops["GlobalAverage"]
    assert not {"Conv", "Gemm", "MatMul", "FusedConv"} & set(kernels)


@pytest.mark.parametrize("level", ["none", "basic"])
def test_qdq_form_is_refused_where_it_would_not_fuse(level: str) -> None:
    generator = torch.Generator().manual_seed(0)
    p = program(random_conv(generator, "x", "y", (4, 3, 3, 3)), {"x": edge(0.02, 3), "y": edge(1.0, 0)}, "x")
    p = dataclasses.replace(p, inputs=tuple(dataclasses.replace(i, shape=(None, 3, 8, 8)) for i in p.inputs))
    with pytest.raises(ExportError, match="'y': onnxruntime runs no integer kernel") as error:
        CompiledModel(p, level=level)  # type: ignore[arg-type]
    assert "qoperator" in str(error.value)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_four_bit_weights_lie_packed_and_kernels_fuse(form: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y, z = edge(0.02, 3), edge(0.1, 7), edge(0.5, 100)
    conv, linear = random_conv(generator, "x", "y", (16, 8, 3, 3)), random_linear(generator, "x", "z", 20, 64)
    conv = dataclasses.replace(conv, weight=(conv.weight.int() // 16).to(torch.int8))
    linear = dataclasses.replace(linear, weight=(linear.weight.int() // 16).to(torch.int8))
    for node, size, kernel in ((conv, (3, 8, 6, 6), "QLinearConv"), (linear, (3, 64), "QGemm")):
        p = program(node, {"x": x, node.output: y if node is conv else z}, "x", rank=len(size))
        p = dataclasses.replace(p, inputs=tuple(dataclasses.replace(i, shape=(None, *size[1:])) for i in p.inputs))
        data = onnx_bytes(p, form=form)  # type: ignore[arg-type]
        stored = {t.name: t for t in onnx.load_from_string(data).graph.initializer}
        packed = stored[f"{node.output}.weight.packed"]
        assert packed.data_type == onnx.TensorProto.INT4
        assert len(packed.raw_data) == node.weight.numel() // 2
        kernels = census(data)
        assert kernels[kernel] == 1
        assert "Cast" not in kernels
        inputs = values_of(random_codes(size, x, generator), x)
        assert_exact(Int8Model(p), inputs, form=form, level="all")


def test_export_writes_the_form_and_says_which(tmp_path: Path) -> None:
    int8, _ = int8_of("ResNet", "w8a8")
    for form in ("qdq", "qoperator"):
        path = tmp_path / f"{form}.onnx"
        assert tq.export_onnx(int8, path, form=form) == path.stat().st_size  # type: ignore[arg-type]
        model = onnx.load(str(path))
        assert {p.key: p.value for p in model.metadata_props}["truequant.form"] == form
        named = any(node.op_type == "QLinearConv" for node in model.graph.node)
        assert named == (form == "qoperator")
        assert {o.domain for o in model.opset_import} == ({""} if form == "qdq" else {"", "com.microsoft"})


def test_no_such_form(tmp_path: Path) -> None:
    int8, _ = int8_of("ResNet", "w8a8")
    with pytest.raises(ArgumentError, match="no form 'qop' of an ONNX file"):
        tq.export_onnx(int8, tmp_path / "m.onnx", form="qop")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_tensors_pass_without_a_copy() -> None:
    """onnxruntime reads the input where torch keeps it; the output lives on in memory of its own."""
    int8, x = int8_of("ResNet", "w8a8")
    compiled = CompiledModel(int8.program)
    first, expected = compiled(x), int8(x)
    strided = torch.cat([x, x], dim=3)[..., : x.shape[3]]
    second = compiled(strided)
    assert first.data_ptr() != second.data_ptr()
    del compiled
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


def test_an_input_that_needs_no_copy_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from truequant.runtimes.onnxruntime import session as sessions

    int8, x = int8_of("ResNet", "w8a8")
    compiled, seen = CompiledModel(int8.program), []
    active = compiled._session

    class Watching:
        def __getattr__(self, name: str) -> object:
            return getattr(active, name)

        def io_binding(self) -> object:
            binding, bind = active.io_binding(), active.io_binding().__class__.bind_input
            monkeypatch.setattr(type(binding), "bind_input", lambda b, *a: (seen.append(a[-1]), bind(b, *a))[1])
            return binding

    found = sessions.run(Watching(), {int8.program.inputs[0].name: x})
    assert seen == [x.data_ptr()]
    assert torch.equal(found[int8.program.output_names()[0]], int8(x))


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_a_batch_of_256(form: str) -> None:
    p = residual_net()
    x = torch.randn(256, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, found = Int8Model(p).codes(x), EdgeReader(p, form=form, threads=2).codes(x)  # type: ignore[arg-type]
    assert all(torch.equal(found[name].int(), codes.int()) for name, codes in expected.items())
