"""Constants beside an ONNX file: the file itself is one protobuf message, which holds 2 GiB at most.

They lie one after the other in a file of the same folder whose name holds their SHA-256, so that no export ever changes the
constants of another. Read, they are untrusted: see `require_inside`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from truequant.errors import FileError
from truequant.files import atomic_write
from truequant.runtimes.packages import onnx

INLINE_LIMIT = 2**31 - 2**26
"""Bytes of constants up to which they lie in the file itself: what is left of 2 GiB takes nodes, names and metadata."""
_OWN_FROM = 1024
"""Bytes from which a constant leaves a file that is too large; shapes and scales stay readable in it."""
_ALIGNMENT = 4096
_ENDING = re.compile(r"\.[0-9a-f]{16}\.data")


def too_large(model: Any) -> bool:
    """Whether the constants of a model must lie beside its file."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > INLINE_LIMIT


def constants_path(model: Any, path: Path) -> Path:
    """Where the constants of a model lie whose file is `path`."""
    content = hashlib.sha256()
    for tensor in _large(model):
        content.update(f"{tensor.name}\0{len(tensor.raw_data)}\0".encode() + tensor.raw_data)
    return path.with_name(f"{path.name}.{content.hexdigest()[:16]}.data")


def _large(model: Any) -> list[Any]:
    return [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _OWN_FROM]


def split(model: Any, path: Path) -> int:
    """Write the large constants of `model` to `path` and let the model name them there; the size of that file in bytes."""
    large = _large(model)
    places: list[tuple[int, int]] = []

    def content(file: BinaryIO) -> None:
        for tensor in large:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            places.append((file.tell(), len(tensor.raw_data)))
            file.write(tensor.raw_data)

    size = atomic_write(path, content)
    for tensor, (offset, length) in zip(large, places, strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = onnx().TensorProto.EXTERNAL
        for key, value in (("location", path.name), ("offset", offset), ("length", length)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
    return size


def forget_others(path: Path, kept: Path | None) -> None:
    """Remove constants of earlier exports to `path`."""
    for other in path.parent.iterdir():
        ours = other.name.startswith(path.name) and _ENDING.fullmatch(other.name.removeprefix(path.name))
        if ours and other != kept and other.is_file() and not other.is_symlink():
            other.unlink(missing_ok=True)


def require_inside(model: Any, path: Path) -> bool:
    """Whether the model of the file `path` has constants beside it.

    FileError where one is not wholly in a plain file of the same folder: an absolute place, one that leaves the folder by `..`
    or by a link, or a size that is another than its shape's.
    """
    found = [tensor for tensor in _tensors(model) if tensor.external_data or tensor.data_location]
    for tensor in found:
        _require_inside(tensor, path)
    return bool(found)


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor of a model, wherever it stands: in attributes, subgraphs, sparse tensors and functions too."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(item)


def _require_inside(tensor: Any, path: Path) -> None:
    def wrong(what: str, got: object, expected: object = None) -> FileError:
        return FileError(f"'{path}': constant '{tensor.name[:80]}' {what}", got=str(got)[:80], expected=expected)

    keys = [entry.key for entry in tensor.external_data]
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if len(fields) != len(keys) or not location:
        raise wrong("does not say where it lies", keys[:8], "location, offset and length, once each")
    place, folder = path.parent / location, path.parent.resolve()
    if os.path.isabs(location) or "\\" in location or place.resolve().parent != folder:
        raise wrong("lies outside the file's folder", location, "the name of a file beside the model")
    if not place.is_file():
        raise wrong("lies in a file that is not there", location)
    numbers = {key: fields[key] for key in ("offset", "length") if key in fields}
    if any(not re.fullmatch(r"[0-9]{1,18}", text) for text in numbers.values()):
        raise wrong("lies at a place that is no number", numbers, "bytes")
    size, offset = place.stat().st_size, int(numbers.get("offset", 0))
    needed = _bytes(tensor)
    length = int(numbers.get("length", size - offset))
    if needed is None or length != needed or offset + length > size:
        raise wrong("does not fit the bytes that it names", f"{length} at {offset} of {size}", f"{needed} bytes")


def _bytes(tensor: Any) -> int | None:
    """What the shape and dtype of a tensor take; None for what has no fixed size."""
    try:
        dtype = onnx().helper.tensor_dtype_to_np_dtype(tensor.data_type)
        bits = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}.get(dtype.name, 8 * int(dtype.itemsize))
    except (KeyError, TypeError, ValueError):
        return None
    if dtype.name == "object" or any(n < 0 for n in tensor.dims):
        return None
    return -(-math.prod(map(int, tensor.dims)) * bits // 8)
