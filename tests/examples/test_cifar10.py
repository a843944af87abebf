"""The CIFAR-10 recipe: both layouts of the files, files that lie, and the whole run on a few made-up images."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import cifar10, cifar10_resnet20
from truequant.errors import DataError

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def batch(seed: int, n: int = 20) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 3072), np.uint8), [int(i) for i in generator.integers(0, 10, n)]


def binary(folder: Path, n: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(NAMES):
        pixels, labels = batch(seed, n)
        (folder / f"{name}.bin").write_bytes(
            b"".join(bytes([c]) + row.tobytes() for c, row in zip(labels, pixels, strict=True))
        )
    return folder


def python2(pixels: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes of the published files, which Python 2 wrote: text is bytes, arrays name numpy.core."""
    raw, n = pixels.tobytes(), len(pixels)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    state = b"(K\x01K" + bytes([n]) + b"M\x00\x0c\x86" + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    return b"\x80\x02}(U\x04data" + array + state + b"U\x06labels](" + b"".join(b"K" + bytes([c]) for c in labels) + b"eu."


@pytest.mark.parametrize("form", ["python 2", "protocol 2", "protocol 5"])
def test_both_layouts_hold_the_same_images(tmp_path: Path, form: str) -> None:
    place = tmp_path / "py" / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        pixels, labels = batch(seed)
        fresh = {b"data" if form == "protocol 2" else "data": pixels, "labels": labels, "batch_label": "one"}
        written = python2(pixels, labels) if form == "python 2" else pickle.dumps(fresh, int(form[-1]))
        (place / name).write_bytes(written)
    if form == "protocol 5":  # numpy writes those with a function of its own, which is not on the list
        with pytest.raises(DataError, match="_frombuffer"):
            cifar10.load_cifar10(tmp_path / "py")
        return
    a, b = cifar10.load_cifar10(binary(tmp_path / "bin")), cifar10.load_cifar10(tmp_path / "py")
    assert a.train_images.shape == (100, 3, 32, 32)
    assert a.test_labels.tolist() == batch(5)[1]
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(a, field), getattr(b, field))
    assert a.train_images[0, 2, 31, 31] == batch(0)[0][0][-1]


class Runs:
    """Pickled, it is a call of os.system."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (pickle.dumps(Runs(), 2), "asks for posix.system"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]}, 2), "no pickle of plain data"),
        (pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, 2), "'data' is no table of images"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, 2), "'labels' does not fit"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, 2), "'labels' does not fit"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, 2)[:-40], "no pickle of plain data"),
        (pickle.dumps([1, 2], 2), "'data' is no table of images"),
        (python2(*batch(0)).replace(b"(K\x01K\x14", b"(K\x01K\x15"), "no pickle of plain data"),
        (b"", "no pickle of plain data"),
        (b"\x80\x02Pid\n.", "refers to something outside|no pickle"),
    ],
)  # fmt: skip
def test_python_files_that_lie_run_nothing(
    tmp_path: Path, written: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / name).write_bytes(written)
    with pytest.raises(DataError, match=message):
        cifar10.load_cifar10(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_binary_files_that_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="holds no CIFAR-10"):
        cifar10.load_cifar10(tmp_path)
    place = binary(tmp_path / "x")
    whole = (place / "data_batch_3.bin").read_bytes()
    for broken, message in (
        (whole[:-1], "not a whole number of records"), (b"", "not a whole number"), (b"\x0a" + whole[1:], "out of range"),
    ):  # fmt: skip
        (place / "data_batch_3.bin").write_bytes(broken)
        with pytest.raises(DataError, match=message):
            cifar10.load_cifar10(place)
    (place / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match="data_batch_3.bin' is missing"):
        cifar10.load_cifar10(place)
    monkeypatch.setattr(cifar10, "LARGEST_FILE", 100)
    with pytest.raises(DataError, match="too large"):
        cifar10.load_cifar10(place)


def test_augmentation_crops_and_mirrors_what_is_there() -> None:
    images = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).reshape(2, 3, 32, 32) + 1
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    out = cifar10_resnet20.augmented(images, torch.Generator().manual_seed(0))
    for k in range(2):
        crops = [padded[k, :, r : r + 32, c : c + 32] for r in range(9) for c in range(9)]
        assert any(torch.equal(out[k], crop) or torch.equal(out[k], crop.flip(2)) for crop in crops)


def test_widths_fall_to_the_planned_ones() -> None:
    assert cifar10_resnet20.widths(2, 300) == {0: 4, 100: 3, 200: 2}
    assert cifar10_resnet20.widths(3, 300) == {0: 4, 150: 3}
    assert cifar10_resnet20.widths(4, 300) == {0: 4}


@pytest.mark.slow
def test_the_whole_run_and_one_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = binary(tmp_path / "data", 8)
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--batch", "20", "--device", "cpu", "--float-epochs", "1"]
    cifar10_resnet20.main([*arguments, "--epochs", "2"])
    results = cifar10_resnet20.main([*arguments, "--epochs", "3"])
    said = capsys.readouterr().out
    assert "qat-2: goes on behind epoch 2" in said
    assert results["qat"] == results["onnxruntime"]
    assert "EXACT" in said
    assert (tmp_path / "out" / "resnet20.onnx").stat().st_size > 0
