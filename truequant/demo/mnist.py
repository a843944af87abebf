"""MNIST from a folder of idx files: LeCun, Cortes, Burges, "The MNIST database of handwritten digits"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from truequant.demo.idx import IdxFile, read_idx
from truequant.errors import DataError

# SHA-256 of the genuine files, decompressed, so that any packing of them is recognised.
_GENUINE = {
    "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_CLASSES = 10
_SIDE = 28
_HELD_OUT = 12  # one image in twelve: 5,000 of 60,000


@dataclass(frozen=True, slots=True)
class Mnist:
    """Three disjoint parts. Images are float32 `(n, 1, 28, 28)` in [0, 1], labels int64 `(n,)` in [0, 9].

    train: for training; held_out: the last twelfth of the training files, for choosing ranges; test: for reporting.
    genuine: whether the four files are the published ones; a well-formed foreign set (Fashion-MNIST, say) is not.
    """

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    genuine: bool


def load_mnist(folder: Path | None = None) -> Mnist:
    """The set in `folder`, by default the one that lies in the repository. DataError names the file and its fault."""
    place = _repository_folder() if folder is None else Path(folder)
    files = {name: read_idx(_find(place, name), 3 if name.endswith("images") else 1) for name in _GENUINE}
    genuine = _check_genuine(files, place)
    train_images, train_labels = _labelled(files, "train", place)
    test_images, test_labels = _labelled(files, "t10k", place)
    kept = len(train_images) - len(train_images) // _HELD_OUT
    return Mnist(
        train_images[:kept], train_labels[:kept], train_images[kept:], train_labels[kept:], test_images, test_labels, genuine
    )


def _repository_folder() -> Path:
    for root in (Path.cwd(), *Path(__file__).resolve().parents):
        if (place := root / "data" / "mnist").is_dir():
            return place
    raise DataError(
        "MNIST was not found: installed packages come without it",
        expected="a folder data/mnist here, as in truequant's repository",
        fix="give the folder of its four idx files, gzipped or not: --data DIR",
    )


def _find(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise DataError(
            f"'{folder}' is not a folder", expected="the folder of the four idx files of MNIST", fix="give it: --data DIR"
        )
    kind = "idx3" if name.endswith("images") else "idx1"
    names = [f"{name}{mark}{kind}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for candidate in names:
        if (path := folder / candidate).is_file():
            return path
    raise DataError(
        f"'{folder}' has no {name} file", expected=" or ".join(names[:2]), fix="copy the file there, gzipped or not"
    )


def _check_genuine(files: dict[str, IdxFile], folder: Path) -> bool:
    """All or none: beside genuine files, one that differs is damaged or out of place, not another data set."""
    foreign = [name for name, file in files.items() if file.sha256 != _GENUINE[name]]
    if foreign and len(foreign) < len(files):
        name = foreign[0]
        raise DataError(
            f"'{_find(folder, name)}' differs from the genuine MNIST, though other files beside it are genuine",
            got=f"SHA-256 {files[name].sha256}", expected=f"SHA-256 {_GENUINE[name]} (of the decompressed file)",
            fix="copy the file again from the MNIST distribution",
        )  # fmt: skip
    return not foreign


def _labelled(files: dict[str, IdxFile], part: str, folder: Path) -> tuple[Tensor, Tensor]:
    images, labels = files[f"{part}-images"].values, files[f"{part}-labels"].values
    where = f"'{folder}', {part}"
    if tuple(images.shape[1:]) != (_SIDE, _SIDE):
        raise DataError(f"{where}: images of a wrong size", got=tuple(images.shape[1:]), expected=(_SIDE, _SIDE))
    if len(images) != len(labels):
        raise DataError(f"{where}: images and labels do not match", got=f"{len(images)} images, {len(labels)} labels")
    if len(images) < _HELD_OUT:
        raise DataError(f"{where}: too few images", got=len(images), expected=f"at least {_HELD_OUT}")
    if (highest := int(labels.max())) >= _CLASSES:
        raise DataError(f"{where}: a label out of range", got=highest, expected=f"0 to {_CLASSES - 1}")
    return images.unsqueeze(1).float() / 255, labels.long()
