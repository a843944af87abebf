"""An ONNX file alone: its program in its metadata or beside it, its own codes, and what hostile files are told."""

from __future__ import annotations

import base64
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

import truequant as tq
from tests.programs import residual_net
from truequant.errors import ExportError, FileError
from truequant.files import container_bytes
from truequant.integer.serialize import to_container
from truequant.runtimes import onnx_bytes
from truequant.runtimes.onnx import external
from truequant.runtimes.onnx.metadata import CONTAINER, PROGRAM

NET = residual_net()
WIDE_NET = residual_net(width=16)
X = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def rewritten(path: Path, **properties: str | None) -> Path:
    """The file with other metadata; None takes an entry away."""
    model = onnx.load(str(path))
    found = {p.key: p.value for p in model.metadata_props} | {k.replace("__", "."): v for k, v in properties.items()}
    onnx.helper.set_model_props(model, {k: v for k, v in found.items() if v is not None})
    onnx.save(model, str(path))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tq.export_onnx(NET, tmp_path / "net.onnx", program=True)
    return tmp_path / "net.onnx"


def test_a_file_that_carries_its_program(file: Path) -> None:
    report = tq.assert_exact(None, file, [X])
    assert list(report.runtimes) == ["onnxruntime"]
    assert report.codes_compared == sum(c.numel() for c in tq.Int8Model(NET).codes(X).values())


def test_a_file_with_its_program_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    tq.export_onnx(NET, path)
    with pytest.raises(FileError, match="its program is nowhere to be found"):
        tq.verify(None, path, [X])
    tq.Int8Model(NET).save(tmp_path / "net.tq")
    assert tq.verify(None, str(path), [X]).runtimes["onnxruntime"].grade == "EXACT"
    tq.Int8Model(residual_net(1)).save(tmp_path / "net.tq")
    with pytest.raises(FileError, match="is not the program of"):
        tq.verify(None, path, [X])


def test_it_is_the_file_that_runs(file: Path) -> None:
    """Not what an export of its program would be: one weight changed in the file shows at its edge."""
    model = onnx.load(str(file))
    weight = next(t for t in model.graph.initializer if t.name == "b1.weight")
    codes = onnx.numpy_helper.to_array(weight).copy()
    codes.flat[5] ^= 64
    weight.CopyFrom(onnx.numpy_helper.from_array(codes, "b1.weight"))
    onnx.save(model, str(file))
    report = tq.verify(None, file, [X], cases=file.parent)
    assert set(report.runtimes["onnxruntime"].origins) == {"b1"}
    assert tq.replay(file.parent / "onnxruntime.case", file).reproduced


def test_a_stored_program_and_a_tq_file_are_the_same_argument(tmp_path: Path) -> None:
    tq.Int8Model(NET).save(tmp_path / "net.tq")
    assert tq.assert_exact(None, tmp_path / "net.tq", [X]).program == tq.verify(None, NET, [X]).program


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("?!", "not base64"),
        ("é", "not base64"),
        ("", "too short"),
        (base64.b64encode(b"\xff" * 16).decode(), "not a truequant file"),
        (base64.b64encode((2**20).to_bytes(8, "little") + b"{}").decode(), "ends inside its table"),
        (base64.b64encode((2).to_bytes(8, "little") + b"{}").decode(), "not of truequant"),
    ],
)
def test_hostile_metadata_is_refused(file: Path, text: str, message: str) -> None:
    rewritten(file, truequant__program__container=text)
    with pytest.raises(FileError, match=message):
        tq.verify(None, file, [X])


def test_a_stored_program_is_read_as_a_tq_file_is(file: Path) -> None:
    header, tensors = to_container(NET)
    lies = ({"version": 99}, {"sha256": "0" * 64}, {"nodes": []}, {"format": "other"})
    for lie in lies:
        text = base64.b64encode(container_bytes("p", header | lie, tensors)).decode()
        rewritten(file, truequant__program__container=text)
        with pytest.raises(FileError):
            tq.verify(None, file, [X])
    other = base64.b64encode(container_bytes("p", *to_container(residual_net(1)))).decode()
    rewritten(file, truequant__program__container=other)
    with pytest.raises(FileError, match="is not the program of"):
        tq.verify(None, file, [X])


def test_files_that_are_no_model_of_ours(file: Path, tmp_path: Path) -> None:
    rewritten(file, truequant__program=None)
    with pytest.raises(FileError, match="no program is named"):
        tq.verify(None, file, [X])
    (tmp_path / "noise.onnx").write_bytes(b"\xff\xfe\x00 noise")
    with pytest.raises(FileError, match="not an ONNX file"):
        tq.verify(None, tmp_path / "noise.onnx", [X])
    with pytest.raises(FileError, match="cannot be read"):
        tq.verify(None, tmp_path / "missing.onnx", [X])


def test_data_outside_the_folder_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for place in ("../secret.bin", "/etc/hostname"):
        model = onnx.load_model_from_string(whole)
        tensor = model.graph.initializer[0]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", place
        file.write_bytes(model.SerializeToString())
        with pytest.raises(FileError, match="outside the file's folder"):
            tq.verify(None, file, [X])


def test_a_file_without_an_edge_or_that_does_not_run(file: Path) -> None:
    model = onnx.load(str(file))
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == "a2":
                    names[i] = "other"
    whole = file.read_bytes()
    onnx.save(model, str(file))
    with pytest.raises(FileError, match="no tensor has the name of an edge"):
        tq.verify(None, file, [X])
    file.write_bytes(whole)
    model = onnx.load(str(file))
    model.graph.node[3].op_type = "NoSuchOp"
    onnx.save(model, str(file))
    with pytest.raises(FileError, match="onnxruntime does not run it"):
        tq.verify(None, file, [X])


def test_the_metadata_names_the_program(file: Path) -> None:
    found = {p.key: p.value for p in onnx.load(str(file)).metadata_props}
    assert found[PROGRAM] == tq.verify(None, NET, [X]).program
    assert CONTAINER in found


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

    monkeypatch.setattr("truequant.runtimes.onnxruntime.dialect.require_integer_kernels", fails)
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


def test_constants_of_nodes_are_looked_at_too(file: Path) -> None:
    model = onnx.load(str(file))
    hidden = onnx.numpy_helper.from_array(torch.zeros(3).numpy(), "hidden")
    hidden.ClearField("raw_data")
    hidden.data_location = onnx.TensorProto.EXTERNAL
    entry = hidden.external_data.add()
    entry.key, entry.value = "location", "../secret.data"
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["hidden.value"], value=hidden))
    file.write_bytes(model.SerializeToString())
    with pytest.raises(FileError, match="outside the file's folder"):
        tq.verify(None, file, [X])


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
