"""Laws of exports whose constants lie beside the ONNX file. Run by test_onnx_files.py."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

import truequant as tq
from tests.programs import residual_net
from truequant.errors import ExportError, FileError
from truequant.runtimes import external, onnx_bytes

WIDE_NET = residual_net(width=16)
X = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> tuple[Path, Path]:
    """The model's file and that of its constants."""
    monkeypatch.setattr(external, "INLINE_LIMIT", 1000)
    path = tmp_path / "net.onnx"
    size = tq.export_onnx(WIDE_NET, path, program=True, **options)  # type: ignore[arg-type]
    (constants,) = tmp_path.glob("net.onnx.*.data")
    assert size == sum(f.stat().st_size for f in tmp_path.iterdir())
    return path, constants


@pytest.mark.parametrize("form", ["qdq", "qoperator", "openvino"])
def test_constants_beside_a_file_that_is_too_large(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, constants = in_parts(tmp_path, monkeypatch, form=form)
    stored = onnx.load(str(path), load_external_data=False).graph.initializer
    outside = [t for t in stored if t.data_location == onnx.TensorProto.EXTERNAL]
    assert outside
    assert max(len(t.raw_data) for t in stored) < 1024
    assert all(int(e.value) % 4096 == 0 for t in outside for e in t.external_data if e.key == "offset")
    onnx.checker.check_model(str(path))
    whole = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = whole.run(None, {whole.get_inputs()[0].name: X.numpy()})[0]
    assert torch.equal(torch.from_numpy(found), tq.Int8Model(WIDE_NET)(X))
    monkeypatch.undo()
    monkeypatch.chdir("/")  # nothing depends on where one stands
    tq.assert_exact(None, path, [X])
    assert constants.exists()


def test_too_large_to_run_from_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "INLINE_LIMIT", 1000)
    with pytest.raises(ExportError, match="too large for one message"):
        onnx_bytes(WIDE_NET)
    tq.assert_exact(None, WIDE_NET, [X], runtimes=("onnxruntime", "openvino"))
    assert torch.equal(tq.compile(WIDE_NET)(X), tq.Int8Model(WIDE_NET)(X))


def test_an_export_forgets_the_constants_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, first = in_parts(tmp_path, monkeypatch)
    (tmp_path / "net.onnx.notes.data").write_text("somebody else's")
    tq.export_onnx(residual_net(2, width=16), path)
    (second,) = (p for p in tmp_path.glob("net.onnx.*.data") if "notes" not in p.name)
    assert second != first
    monkeypatch.undo()
    tq.export_onnx(residual_net(2, width=16), path)
    assert [p.name for p in tmp_path.glob("net.onnx.*.data")] == ["net.onnx.notes.data"]


def test_a_failed_proof_leaves_the_former_export_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, constants = in_parts(tmp_path, monkeypatch)

    def fails(*args: object, **options: object) -> None:
        raise ExportError("no kernel")

    monkeypatch.setattr("truequant.runtimes.export.require_integer_kernels", fails)
    for net in (residual_net(2, width=16), WIDE_NET):
        with pytest.raises(ExportError, match="no kernel"):
            tq.export_onnx(net, path)
        assert list(tmp_path.glob("net.onnx.*.data")) == [constants]
    monkeypatch.undo()
    tq.assert_exact(None, path, [X])


def test_constants_that_lie_about_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, constants = in_parts(tmp_path, monkeypatch)
    monkeypatch.undo()
    whole, size = path.read_bytes(), constants.stat().st_size
    outside = tmp_path.parent / "secret.data"
    outside.write_bytes(constants.read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner.data").write_bytes(constants.read_bytes())
    (tmp_path / "link.data").symlink_to(outside)
    (tmp_path / "folder.data").mkdir()
    places = {
        "../secret.data": "outside the file's folder", str(outside): "outside the file's folder",
        "link.data": "outside the file's folder", "folder/inner.data": "outside the file's folder",
        "..\\secret.data": "outside the file's folder", "": "does not say where it lies",
        "missing.data": "a file that is not there", "folder.data": "a file that is not there",
    }  # fmt: skip
    lies = [({"location": place}, message) for place, message in places.items()]
    lies += [({"offset": text}, "a place that is no number") for text in ("-1", "1e3", "9" * 30)]
    lies += [({key: text}, "does not fit the bytes") for key, text in (("offset", str(size)), ("length", "1"), ("length", "0"))]
    for lie, message in lies:
        model = onnx.load_model_from_string(whole)
        tensor = next(t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
        for entry in tensor.external_data:
            entry.value = lie.get(entry.key, entry.value)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(FileError, match=message):
            tq.verify(None, path, [X])
    twice = onnx.load_model_from_string(whole)
    tensor = next(t for t in twice.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    tensor.external_data.add().CopyFrom(tensor.external_data[0])
    path.write_bytes(twice.SerializeToString())
    with pytest.raises(FileError, match="does not say where it lies"):
        tq.verify(None, path, [X])
    grown = onnx.load_model_from_string(whole)
    next(t for t in grown.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL).dims[0] *= 2
    path.write_bytes(grown.SerializeToString())
    with pytest.raises(FileError, match="does not fit the bytes"):
        tq.verify(None, path, [X])


def test_a_changed_byte_of_the_constants_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, constants = in_parts(tmp_path, monkeypatch)
    monkeypatch.undo()
    stored = onnx.load(str(path), load_external_data=False).graph.initializer
    tensor = next(t for t in stored if t.name == "b2.weight")
    offset = next(int(e.value) for e in tensor.external_data if e.key == "offset")
    data = bytearray(constants.read_bytes())
    data[offset + 5] ^= 64
    constants.write_bytes(data)
    assert set(tq.verify(None, path, [X]).runtimes["onnxruntime"].origins) == {"b2"}
