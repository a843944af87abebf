"""`quantize`, `convert`, `export`, `verify`, `benchmark`: a whole way through files, and what refuses to go it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from typer.testing import CliRunner, Result

import truequant as tq
from truequant.cli.app import app
from truequant.cli.naming import made
from truequant.reports import read_report

FILE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

def data():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(32, 1, 8, 8, generator=generator)
    parts = TensorDataset(images, torch.arange(32) % 3)
    return {"train": DataLoader(parts, 8, shuffle=True), "test": DataLoader(parts, 8)}

pair = lambda: (list(data()["train"]), list(data()["test"]))
once = lambda: (batch for batch in data()["test"])
wrong = lambda: {"training": []}
nothing = lambda: 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "jobs.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})


def test_from_weights_to_a_verified_file(folder: Path) -> None:
    weights = folder / "float.ckpt"
    trained = made("jobs.py:make", "here")
    torch.nn.init.constant_(trained[4].bias, 2.0)
    tq.save_checkpoint(weights, model=trained)
    quantized = invoke(
        "quantize", "jobs.py:make", "--data", "jobs.py:data", "--weights", str(weights), "--method", "cross-layer-equalization",
        "--method", "mse", "--out", "m.tq", "--onnx", "m.onnx", "--batches", "2", "--json",
    )  # fmt: skip
    assert quantized.exit_code == 0, quantized.output
    found = json.loads(quantized.stdout)
    assert found["files"] == {name: (folder / name).stat().st_size for name in ("m.tq", "m.onnx")}
    assert {name: found["verification"][name]["grade"] for name in ("reference", "onnxruntime")} == {
        "reference": "EXACT", "onnxruntime": "EXACT",
    }  # fmt: skip
    outputs = tq.load("m.tq")(torch.zeros(4, 1, 8, 8))
    assert float(outputs.mean()) > 1  # the weights of the file, not the factory's

    exported = invoke("export", "m.tq", "--out", "again.onnx", "--json")
    assert json.loads(exported.stdout)["kernels"]["QLinearConv"] == 1
    assert (folder / "again.onnx").read_bytes() == (folder / "m.onnx").read_bytes()
    assert json.loads(exported.stdout)["lint"]["missed"] == tq.lint("m.tq").to_dict()["missed"]
    programmed = invoke("export", "m.tq", "--form", "torch.export", "--out", "m.pt2", "--json")
    assert json.loads(programmed.stdout)["ops"]["quantized_decomposed.dequantize_per_channel.default"] == 2
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(torch.export.load("m.pt2").module()(x), tq.load("m.tq")(x), atol=0.1)
    verified = invoke("verify", "m.tq", "--data", "jobs.py:pair", "--batches", "3", "--json")
    assert json.loads(verified.stdout)["verification"]["onnxruntime"]["codes_compared"] > 0
    assert verified.exit_code == 0


def test_a_checkpoint_of_qat_converts_and_is_what_verify_expects(folder: Path) -> None:
    qat = tq.prepare(made("jobs.py:make", "here"), torch.zeros(8, 1, 8, 8))
    tq.calibrate(qat, [torch.randn(8, 1, 8, 8)])
    tq.save_checkpoint("qat.ckpt", model=qat)
    assert invoke("convert", "qat.ckpt", "--model", "jobs.py:make", "--out", "m.tq").exit_code == 0
    same = ["--data", "jobs.py:data", "--checkpoint", "qat.ckpt", "--model", "jobs.py:make", "--runtime", "reference"]
    assert invoke("verify", "m.tq", *same).exit_code == 0
    reported = invoke("report", "qat.ckpt", "--model", "jobs.py:make", "--data", "jobs.py:data", "--out", "r.html", "--json")
    assert json.loads(reported.stdout)["files"] == {"r.html": (folder / "r.html").stat().st_size}
    assert read_report(folder / "r.html")["verification"][0]["grade"] == "EXACT"

    with torch.no_grad():
        qat[4].bias += 1
    tq.save_checkpoint("qat.ckpt", model=qat)  # trained on since: the file is not this model any more
    result = invoke("verify", "m.tq", *same)
    assert result.exit_code == 1
    assert "The deployed model is not the validated one. First at edge" in result.stderr
    tq.save_checkpoint("float.ckpt", model=made("jobs.py:make", "here"))
    refused = invoke("convert", "float.ckpt", "--model", "jobs.py:make", "--out", "m.tq")
    assert (refused.exit_code, "no checkpoint of quantization-aware training" in refused.stderr) == (2, True)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "jobs.py:wrong"], "made unknown parts"),
        (["--data", "jobs.py:nothing"], "made no batches"),
        (["--data", "jobs.py:once"], "can be read only once"),
        (["--data", "jobs.py:data", "--method", "magic"], "no such method"),
        (["--data", "jobs.py:data", "--out", "no/such/folder/m.tq"], "lies in no folder"),
        (["--data", "jobs.py:data", "--weights", "none.ckpt"], "none.ckpt"),
    ],
)
def test_what_quantize_refuses(arguments: list[str], words: str) -> None:
    result = invoke("quantize", "jobs.py:make", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.usefixtures("folder")
def test_benchmark_times_all_forms() -> None:
    result = invoke("benchmark", "jobs.py:make", "--input", "4x1x8x8", "--rounds", "2", "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    seconds = json.loads(result.stdout)["seconds"]
    assert list(seconds["inference"])[:4] == ["float", "QAT, evaluated", "Int8 program", "onnxruntime"]
    assert list(seconds["training step"]) == ["float", "quantization-aware"]
    assert all(value > 0 for values in seconds.values() for value in values.values())


def test_benchmark_beside_the_float_model_in_onnxruntime(folder: Path) -> None:
    """The file given is any ONNX model of the same inputs; here the Int8 file stands for the float one's."""
    options = ("--input", "4x1x8x8", "--rounds", "2", "--threads", "1", "--json")
    assert invoke("quantize", "jobs.py:make", "--data", "jobs.py:data", "--out", "m.tq", "--onnx", "m.onnx").exit_code == 0
    result = invoke("benchmark", "m.tq", "--float", "m.onnx", *options)
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["seconds"]["inference"])[:2] == ["float in onnxruntime", "Int8 program"]
    (folder / "two.onnx").write_bytes(_two_inputs())
    for file, words in {
        "none.onnx": "--float: no such file",
        "m.tq": "--float: onnxruntime does not take 'm.tq'",
        "two.onnx": "--float: 'two.onnx' takes other inputs than the model",
    }.items():
        refused = invoke("benchmark", "m.tq", "--float", file, *options)
        assert refused.exit_code == 2
        assert words in refused.stderr


def _two_inputs() -> bytes:
    value = onnx.helper.make_tensor_value_info
    inputs = [value(name, onnx.TensorProto.FLOAT, [1]) for name in ("a", "b")]
    nodes = [onnx.helper.make_node("Add", ["a", "b"], ["c"])]
    graph = onnx.helper.make_graph(nodes, "two", inputs, [value("c", onnx.TensorProto.FLOAT, [1])])
    opset = [onnx.helper.make_opsetid("", 17)]
    return bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())
