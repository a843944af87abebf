"""The main job on a small set made here: every file is written, every number is true."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from rich.console import Console

import truequant as tq
from truequant.demo import MODELS, DemoOptions, load_mnist, run_demo
from truequant.errors import ArgumentError, DataError, SchemeError


def write_set(folder: Path) -> None:
    """Ten classes of bright bars over noise: learnable within a few steps."""
    for part, count in (("train", 1200), ("t10k", 300)):
        labels = torch.arange(count) % 10
        images = torch.randint(0, 60, (count, 28, 28))
        images[torch.arange(count)[:, None], 2 * labels[:, None] + torch.arange(5)] += 190
        for kind, values, sizes in (("images-idx3", images, (count, 28, 28)), ("labels-idx1", labels, (count,))):
            head = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + values.to(torch.uint8).numpy().tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path)
    return tmp_path


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_the_whole_job(folder: Path, model: str) -> None:
    out = folder / "deep" / "out"
    screen = console()
    result = run_demo(DemoOptions(folder, model, float_epochs=1, qat_epochs=1, out=out), screen)

    assert {path.name for path in out.iterdir()} == {
        "model.tq", "model.onnx", "float.safetensors", "result.json", "curves.png",
    }  # fmt: skip
    assert list(result.stages) == ["float", "ptq", "qat", "int8", "onnxruntime"]
    assert result.identical
    assert result.verification.max_difference == 0
    assert result.stages["qat"].top1 == result.stages["int8"].top1 == result.stages["onnxruntime"].top1 > 50
    assert result.verification.codes_compared == sum(r.codes_compared for r in result.verification.runtimes.values()) > 0
    assert not result.genuine_data
    assert (result.test_images, result.ptq_observer in ("min-max", "percentile", "MSE")) == (300, True)
    assert all(set(stage.latency) == {1, 64} and min(stage.latency.values()) > 0 for stage in result.stages.values())
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result.as_json()))

    sizes = {name: stage.size for name, stage in result.stages.items()}
    files = {"float": "float.safetensors", "int8": "model.tq", "onnxruntime": "model.onnx"}
    assert sizes == {"ptq": None, "qat": None} | {name: (out / file).stat().st_size for name, file in files.items()}
    data = load_mnist(folder)
    answers = tq.load(out / "model.tq")(data.test_images).argmax(1)
    assert 100 * int((answers == data.test_labels).sum()) / 300 == result.stages["int8"].top1
    assert safetensors.torch.load_file(out / "float.safetensors").keys() == MODELS[model]().state_dict().keys()

    assert isinstance(screen.file, io.StringIO)
    printed = screen.file.getvalue()
    assert "not the genuine MNIST" in printed
    assert "quantization-aware" in printed


@pytest.mark.parametrize(("enough", "said"), [(0.0, False), (1000.0, True)])
def test_latencies_say_when_the_machine_was_busy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, enough: float, said: bool
) -> None:
    monkeypatch.setattr("truequant.demo.pipeline._FREE", enough)
    screen = console()
    result = run_demo(DemoOptions(folder, "mlp", float_epochs=1, qat_epochs=0, out=folder / "out"), screen)
    assert 0 < result.free < 1.1
    assert json.loads((folder / "out" / "result.json").read_text())["latency_free"] == round(result.free, 3)
    assert isinstance(screen.file, io.StringIO)
    assert (f"the machine was busy: this process ran for {100 * result.free:.0f} %" in screen.file.getvalue()) == said


def test_without_epochs_of_qat_the_calibrated_model_is_deployed(folder: Path) -> None:
    result = run_demo(DemoOptions(folder, "mlp", "w8a8-pow2", float_epochs=1, qat_epochs=0, out=folder / "out"), console())
    assert result.identical
    assert (folder / "out" / "curves.png").is_file()


@pytest.mark.parametrize("model", MODELS)
def test_the_int8_file_is_at_most_three_tenths_of_the_float_file(model: str) -> None:
    float_model, x = MODELS[model](), torch.rand(8, 1, 28, 28)
    qat = tq.calibrate(tq.prepare(float_model, x, "w8a8"), [x]).eval()
    assert tq.convert(qat).size_bytes <= 0.3 * len(safetensors.torch.save(float_model.state_dict()))


def test_what_is_wrong_is_said_before_any_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truequant.demo.pipeline._train", lambda *rest: pytest.fail("it trained"))
    with pytest.raises(SchemeError, match="no preset 'w9a9'"):
        run_demo(DemoOptions(folder, preset="w9a9", out=tmp_path / "o"), console())
    with pytest.raises(ArgumentError, match="no model 'vgg'\n  expected: mlp, lenet, resnet, mobilenet"):
        run_demo(DemoOptions(folder, "vgg", out=tmp_path / "o"), console())
    with pytest.raises(DataError, match="is not a folder"):
        run_demo(DemoOptions(folder / "nowhere", out=tmp_path / "o"), console())
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="cannot be the output folder: File exists\n  fix:      --out DIR"):
        run_demo(DemoOptions(folder, out=tmp_path / "file"), console())
    monkeypatch.setattr("truequant.demo.pipeline.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="the demo needs matplotlib"):
        run_demo(DemoOptions(folder, out=tmp_path / "o"), console())
