"""The MNIST loader: the genuine set, other sets, and every way in which files can be wrong."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
import torch

from truequant.demo import load_mnist
from truequant.demo.idx import read_idx
from truequant.errors import DataError

GENUINE = Path(__file__).parents[3] / "data" / "mnist"


def idx(sizes: list[int], data: bytes, magic: bytes | None = None) -> bytes:
    head = bytes([0, 0, 8, len(sizes)]) if magic is None else magic
    return head + b"".join(size.to_bytes(4, "big") for size in sizes) + data


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A small, well-formed set that is not MNIST: 24 training images, 12 test images."""
    for part, count in (("train", 24), ("t10k", 12)):
        images = idx([count, 28, 28], bytes(range(count)) * 784)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(idx([count], bytes(i % 10 for i in range(count))))
        )
    return tmp_path


def test_the_genuine_set() -> None:
    data = load_mnist(GENUINE)
    assert data.genuine
    assert data.train_images.shape == (55_000, 1, 28, 28)
    assert data.held_out_images.shape == (5_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert data.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.held_out_labels[-3:].tolist() == [5, 6, 8]
    assert data.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.train_images.dtype == torch.float32
    assert (float(data.test_images.min()), float(data.test_images.max())) == (0.0, 1.0)
    # Sum of all grey values of the test images, as known from elsewhere: mean 0.13251 of full white.
    assert round(float(data.test_images.double().mean()), 5) == 0.13251


def test_the_repository_is_found_without_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_mnist().genuine


def test_a_foreign_set_is_read_and_reported(foreign: Path) -> None:
    data = load_mnist(foreign)
    assert not data.genuine
    assert (len(data.train_images), len(data.held_out_images), len(data.test_images)) == (22, 2, 12)
    assert torch.equal(data.train_images[0, 0].flatten()[:24] * 255, torch.arange(24.0))


def refuse(folder: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        load_mnist(folder)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_folder_and_a_missing_file_are_named(foreign: Path) -> None:
    refuse(foreign / "nowhere", f"'{foreign / 'nowhere'}' is not a folder", "fix:      give it: --data DIR")
    (foreign / "t10k-images-idx3-ubyte").unlink()
    refuse(foreign, f"'{foreign}' has no t10k-images file", "expected: t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz")


IMAGES = idx([24, 28, 28], bytes(24 * 784))
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not an idx file of unsigned bytes with 3 axes\n  got:      magic number of an empty file"),
    "labels in place of images": (idx([24], bytes(24)), "got:      magic number 00 00 08 01\n  expected: 00 00 08 03"),
    "another element type": (idx([24, 28, 28], b"", bytes([0, 0, 13, 3])), "got:      magic number 00 00 0d 03"),
    "half a header": (IMAGES[:10], "ends inside its header\n  got:      10 bytes\n  expected: 16"),
    "cut": (IMAGES[:-1], "is cut short\n  got:      18815 values\n  expected: 18816 values (24 x 28 x 28)"),
    "too long": (IMAGES + b"\0", "is longer than its header says\n  got:      more than 18816 values"),
    "announces a terabyte": (idx([2**20, 2**10, 2**10], b""), "announces too much data"),
    "announces a gigabyte": (idx([2**10, 2**10, 2**10], b"x"), "is cut short\n  got:      1 values"),
    "of another size": (
        idx([24, 32, 32], bytes(24 * 1024)),
        "images of a wrong size\n  got:      (32, 32)\n  expected: (28, 28)",
    ),
    "fewer than labels": (
        idx([23, 28, 28], bytes(23 * 784)),
        "images and labels do not match\n  got:      23 images, 24 labels",
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gzipped"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_images(foreign: Path, damage: str, packed: bool) -> None:
    content, message = DAMAGED[damage]
    (foreign / "train-images-idx3-ubyte").write_bytes(gzip.compress(content) if packed else content)
    refuse(foreign, message)


def test_damaged_gzip(foreign: Path) -> None:
    whole = gzip.compress(IMAGES)
    for content in (whole[: len(whole) // 2], whole[:-8] + b"\0" * 8, whole[:10] + b"\xff" * 20):
        (foreign / "train-images-idx3-ubyte").write_bytes(content)
        refuse(foreign, "train-images-idx3-ubyte' is damaged: gzip cannot unpack it", "fix:      copy the file again")


def test_a_gzip_bomb_is_unpacked_no_further_than_announced(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(idx([10], bytes(100_000_000)), compresslevel=1))
    with pytest.raises(DataError, match="longer than its header says"):
        read_idx(bomb, 1)


def test_labels_out_of_range(foreign: Path) -> None:
    (foreign / "train-labels-idx1-ubyte.gz").write_bytes(idx([24], bytes([10] * 24)))
    refuse(foreign, "a label out of range", "got:      10", "expected: 0 to 9")


def test_one_damaged_value_among_genuine_files_is_found(tmp_path: Path) -> None:
    shutil.copytree(GENUINE, tmp_path / "mnist")
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    labels = bytearray(gzip.decompress(path.read_bytes()))
    labels[5000] ^= 1
    path.write_bytes(gzip.compress(bytes(labels)))
    refuse(tmp_path / "mnist", f"'{path}' differs from the genuine MNIST, though other files beside it are genuine", "SHA-256")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_idx(tmp_path, 1)
