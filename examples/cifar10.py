"""CIFAR-10 from a local folder, in the binary or the Python layout of its distribution (Krizhevsky 2009).

Files are untrusted. The binary layout is 10,000 records of a label and 3,072 bytes. The Python layout is pickles, which can run
anything: they are read by an unpickler that knows dictionaries, lists, bytes, text, numbers and numpy's byte arrays, and
nothing else, so that every other name in the file is an error.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truequant.errors import DataError

SIZE, CLASSES = 3 * 32 * 32, 10
LARGEST_FILE = 64 << 20
"""Bytes that are read of one file: the published ones have 31 million."""
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST = ("test_batch",)


@dataclass(frozen=True, slots=True)
class Cifar10:
    """Images uint8 `(n, 3, 32, 32)`, labels int64 `(n,)` in 0 … 9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_cifar10(folder: Path) -> Cifar10:
    """The set in `folder`, or in the folder of the archive's name below it. DataError names the file and its fault."""
    folder = Path(folder)
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        if (place / "test_batch.bin").is_file():
            return _both(place, ".bin", _binary)
        if (place / "test_batch").is_file():
            return _both(place, "", _python)
    raise DataError(
        f"'{folder}' holds no CIFAR-10", expected="data_batch_1 … data_batch_5 and test_batch, with or without .bin",
        fix="unpack the binary or the Python version there: --data DIR",
    )  # fmt: skip


def _both(place: Path, ending: str, read: Callable[[bytes, str], tuple[Any, Any]]) -> Cifar10:
    train, test = (_part(place, [f"{n}{ending}" for n in names], read) for names in (_TRAIN, _TEST))
    return Cifar10(*train, *test)


def _part(place: Path, names: list[str], read: Callable[[bytes, str], tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for name in names:
        path, where = place / name, f"'{place / name}'"
        if not path.is_file():
            raise DataError(f"{where} is missing", fix="copy it from the distribution")
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"{where}: too large", got=f"{path.stat().st_size} bytes", expected=f"at most {LARGEST_FILE}")
        pixels, classes = read(path.read_bytes(), where)
        if len(classes) == 0 or int(classes.min()) < 0 or int(classes.max()) >= CLASSES:
            raise DataError(f"{where}: labels out of range", got=f"{len(classes)} labels", expected="0 … 9")
        images.append(torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()))
        labels.append(torch.from_numpy(classes.astype(np.int64)))
    return torch.cat(images), torch.cat(labels)


def _binary(data: bytes, where: str) -> tuple[Any, Any]:
    """Records of one byte for the class and 3,072 for the image, red, green and blue one after the other."""
    record = 1 + SIZE
    if not data or len(data) % record:
        raise DataError(f"{where}: not a whole number of records", got=f"{len(data)} bytes", expected=f"a multiple of {record}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    return rows[:, 1:], rows[:, 0]


def _python(data: bytes, where: str) -> tuple[Any, Any]:
    """A pickled dictionary with `data`, uint8 `(n, 3072)`, and `labels`."""
    try:
        batch = _Restricted(io.BytesIO(data), encoding="bytes").load()
    except DataError:
        raise
    except Exception as error:  # a pickle that lies can fail in any way
        raise DataError(f"{where}: no pickle of plain data", got=f"{type(error).__name__}: {error}"[:200]) from error
    found = (
        {(k.decode("latin1") if isinstance(k, bytes) else k): v for k, v in batch.items()} if isinstance(batch, dict) else {}
    )
    pixels, labels = found.get("data"), found.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != SIZE:
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{where}: 'data' is no table of images", got=got, expected=f"uint8 (n, {SIZE})")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(type(n) is int and 0 <= n < CLASSES for n in labels)
    ):
        raise DataError(
            f"{where}: 'labels' does not fit", got=type(labels).__name__, expected=f"{len(pixels)} integers of 0 … 9"
        )
    return pixels, np.array(labels, np.int64)


class _Array:
    """Stands for an array until its state comes: only bytes of plain uint8 become one."""

    def __init__(self, *arguments: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, _Dtype) or kind.code not in (b"u1", "u1") or not isinstance(raw, bytes) or fortran:
            raise ValueError("an array that is not of plain bytes")
        if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 4 or int(np.prod(shape, dtype=object)) != len(raw):
            raise ValueError("an array whose shape does not fit its bytes")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape)


class _Dtype:
    """The type of an array, by its code: never handed to numpy."""

    def __init__(self, code: Any = None, *arguments: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: uint8 has none."""


def _latin(text: Any, encoding: Any) -> bytes:
    """Python 3 writes bytes in protocol 2 as `_codecs.encode(text, "latin1")`."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise ValueError("an encoding other than latin1")
    return text.encode("latin1")


def _reconstruct(kind: Any, *arguments: Any) -> _Array:
    if kind is not _Array:
        raise ValueError("an array of a strange class")
    return _Array()


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _latin,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct, ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}  # fmt: skip


class _Restricted(pickle.Unpickler):
    """Finds four names, all of them replaced by the harmless ones above; everything else in the file is an error."""

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            raise DataError(
                f"the pickle asks for {module[:80]}.{name[:80]}", expected="plain data", fix="this file is not CIFAR-10"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("the pickle refers to something outside itself", expected="plain data")

    def load(self) -> Any:
        return _plain(super().load())


def _plain(value: Any) -> Any:
    return {k: v.value if isinstance(v, _Array) else v for k, v in value.items()} if isinstance(value, dict) else value
