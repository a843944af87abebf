"""One file: tensors by name and one JSON header, in the safetensors format, which holds data and never code.

    8 bytes      length n of the table, little endian
    n bytes      table: {"__metadata__": {"truequant": HEADER}, NAME: {"dtype": …, "shape": …, "data_offsets": [begin, end]}, …}
    the rest     the tensors' bytes, without a gap

The header is canonical JSON in a string. Equal contents give equal bytes: no time, path or host is written. Reading checks
every size against the file's before it allocates, and says which promise the file broke.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

import safetensors.torch
import torch
from torch import Tensor

from truequant.errors import FileError
from truequant.files.atomic import atomic_write
from truequant.files.canonical_json import Json, dumps, loads
from truequant.files.foreign import foreign
from truequant.files.limits import MAX_HEADER_BYTES, MAX_NAME_LENGTH, MAX_RANK, MAX_TENSORS

_KEY = "truequant"
_METADATA = "__metadata__"
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")  # of tensors, as the safetensors library has it
_FIX = "write or copy the file again"


def write_container(path: str | os.PathLike[str], header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> int:
    """Write `header` and `tensors` atomically and return the file's size in bytes.

    Tensors may lie on any device, be strided or share memory: each is stored whole, contiguous, on its own, and copied one
    at a time. FileError for a name, dtype or header that the format cannot hold; nothing is written then.
    """
    size, pieces = _pieces(path, header, tensors)

    def content(file: BinaryIO) -> None:
        # Behind each piece other threads may run: a training goes on while its file is written.
        for piece in pieces:
            file.write(piece)

    return atomic_write(path, content, size)


def container_bytes(path: str | os.PathLike[str], header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> bytes:
    """What `write_container` writes. path: how errors call it."""
    return b"".join(_pieces(path, header, tensors)[1])


def bytes_of(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's values, in order, as uint8 on the CPU; a copy only where they do not lie so."""
    return tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous().reshape(-1).view(torch.uint8)


def _pieces(
    path: str | os.PathLike[str], header: Mapping[str, object], tensors: Mapping[str, Tensor]
) -> tuple[int, Iterator[bytes | memoryview]]:
    """The size of a container and its bytes, piece by piece, as the safetensors library spells and orders them."""
    text = dumps(dict(header), f"'{path}': header")
    if len(tensors) > MAX_TENSORS:
        raise FileError(f"'{path}': too many tensors", got=len(tensors), expected=f"at most {MAX_TENSORS}")
    for name, tensor in tensors.items():
        _check_name(name, path)
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided:
            raise FileError(
                f"'{path}': tensor '{name}' has a type that the container does not hold",
                got=f"{tensor.dtype}, {tensor.layout}", expected=f"strided, one of {', '.join(map(str, _NAMES))}",
            )  # fmt: skip
        if tensor.dim() > MAX_RANK:
            raise FileError(f"'{path}': tensor '{name}' has too many axes", got=tensor.dim(), expected=f"at most {MAX_RANK}")
    order = sorted(tensors, key=lambda name: (_ORDER.index(_NAMES[tensors[name].dtype]), name))
    table: dict[str, object] = {_METADATA: {_KEY: text}}
    position = 0
    for name in order:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.dtype.itemsize
        table[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    packed = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    if len(packed) > MAX_HEADER_BYTES:
        raise FileError(
            f"'{path}': the header is too large", got=f"{len(packed)} bytes", expected=f"at most {MAX_HEADER_BYTES}"
        )

    def pieces() -> Iterator[bytes | memoryview]:
        yield len(packed).to_bytes(8, "little")
        yield packed
        for name in order:
            for piece in bytes_of(tensors[name]).split(2**20):
                yield piece.numpy().data

    return 8 + len(packed) + position, pieces()


def read_container(path: str | os.PathLike[str]) -> tuple[dict[str, Json], dict[str, Tensor]]:
    """The header and the tensors of a file that anybody may have written. FileError says what is wrong with it."""
    return parse_container(_read(path), path)


def parse_container(data: bytes, path: str | os.PathLike[str]) -> tuple[dict[str, Json], dict[str, Tensor]]:
    """As `read_container`, of bytes that lie in another file. path: how errors call them."""
    header = _header(data[: 8 + _table_length(data[:8], len(data), path)], len(data), path)
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # whatever the format's own reader objects to that the checks above let pass
        raise FileError(f"'{path}': not readable as safetensors", got=str(error), fix=_FIX) from error
    return header, tensors


def read_header(path: str | os.PathLike[str]) -> dict[str, Json]:
    """The header alone, of a file whose size is the one that its table says. FileError says what is wrong with it."""
    try:
        with Path(path).open("rb") as file:
            start, size = file.read(8), os.fstat(file.fileno()).st_size
            return _header(start + file.read(_table_length(start, size, path)), size, path)
    except OSError as error:
        raise FileError(f"'{path}' cannot be read: {error.strerror or error}") from error


def _header(start: bytes, size: int, path: str | os.PathLike[str]) -> dict[str, Json]:
    """The header, from a container's bytes up to its data, where its table describes a file of this size."""
    try:
        table = loads(start[8:].decode("utf-8"), f"'{path}': table")
    except UnicodeDecodeError as error:
        raise FileError(f"'{path}': the table is not text", got=str(error), expected="UTF-8", fix=_FIX) from None
    if not isinstance(table, dict):
        raise FileError(f"'{path}': the table is not an object", got=type(table).__name__, fix=_FIX)
    text = _header_text(table.pop(_METADATA, None), path)
    _check_table(table, size - len(start), path)
    header = loads(text, f"'{path}': header")
    if not isinstance(header, dict):
        raise FileError(f"'{path}': the header is not an object", got=type(header).__name__, fix=_FIX)
    return header


def _read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file long enough for the table that it announces."""
    try:
        with Path(path).open("rb") as file:
            _table_length(file.read(8), os.fstat(file.fileno()).st_size, path)
            file.seek(0)
            return file.read()
    except OSError as error:
        raise FileError(f"'{path}' cannot be read: {error.strerror or error}") from error


def _table_length(start: bytes, size: int, path: str | os.PathLike[str]) -> int:
    """The length that the first bytes of a container announce, where its size allows that."""
    if len(start) < 8:
        raise FileError(f"'{path}': too short for a container", got=f"{size} bytes", expected="at least 8", fix=_FIX)
    if (kind := foreign(start)) is not None:
        raise FileError(f"'{path}': not a truequant file", got=kind.what, expected="a .tq file or a checkpoint", fix=kind.fix)
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        raise FileError(
            f"'{path}': not a truequant file, or its first bytes are damaged",
            got=f"a table of {length} bytes announced", expected=f"at most {MAX_HEADER_BYTES}", fix=_FIX,
        )  # fmt: skip
    if length > size - 8:
        raise FileError(
            f"'{path}': the file ends inside its table",
            got=f"{size} bytes", expected=f"a table of {length} bytes behind the first 8", fix=_FIX,
        )  # fmt: skip
    return length


def _header_text(metadata: Json, path: str | os.PathLike[str]) -> str:
    keys = sorted(metadata) if isinstance(metadata, dict) else None
    text = metadata[_KEY] if isinstance(metadata, dict) and keys == [_KEY] else None
    if not isinstance(text, str):
        raise FileError(
            f"'{path}': a safetensors file, but not of truequant", got=f"metadata keys {keys}", expected=f"['{_KEY}'], a string"
        )
    return text


def _check_table(table: Mapping[str, Json], data_bytes: int, path: str | os.PathLike[str]) -> None:
    """Each entry well formed, and all of them together covering the data exactly once."""
    if len(table) > MAX_TENSORS:
        raise FileError(f"'{path}': too many tensors", got=len(table), expected=f"at most {MAX_TENSORS}")
    spans = []
    for name, entry in table.items():
        _check_name(name, path)
        spans.append((*_span(name, entry, path), name))
    position, before = 0, "the start"
    for begin, end, name in sorted(spans):
        if begin != position:
            raise FileError(
                f"'{path}': tensor '{name}' {'overlaps' if begin < position else 'leaves a gap behind'} {before}",
                got=f"begins at byte {begin}", expected=f"at byte {position}", fix=_FIX,
            )  # fmt: skip
        position, before = end, f"'{name}'"
    if position != data_bytes:
        raise FileError(
            f"'{path}': the file {'is cut short' if position > data_bytes else 'has bytes behind its last tensor'}",
            got=f"{data_bytes} bytes of tensors", expected=f"{position} bytes, as its table says", fix=_FIX,
        )  # fmt: skip


def _span(name: str, entry: Json, path: str | os.PathLike[str]) -> tuple[int, int]:
    if not isinstance(entry, dict) or sorted(entry) != ["data_offsets", "dtype", "shape"]:
        raise FileError(f"'{path}': tensor '{name}' has no complete entry", expected="dtype, shape and data_offsets", fix=_FIX)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FileError(f"'{path}': tensor '{name}' has an unknown dtype", got=repr(dtype)[:80], expected=", ".join(_DTYPES))
    if not _is_counts(shape) or len(cast("list[int]", shape)) > MAX_RANK:
        raise FileError(
            f"'{path}': tensor '{name}' has an impossible shape",
            got=repr(shape)[:80],
            expected=f"at most {MAX_RANK} sizes",
            fix=_FIX,
        )
    if not _is_counts(offsets) or len(cast("list[int]", offsets)) != 2:
        raise FileError(f"'{path}': tensor '{name}' has impossible offsets", got=repr(offsets)[:80], expected="[begin, end]")
    begin, end = cast("list[int]", offsets)
    needed = math.prod(cast("list[int]", shape)) * _DTYPES[dtype].itemsize
    if end - begin != needed:
        raise FileError(
            f"'{path}': tensor '{name}' lies about its size",
            got=f"{end - begin} bytes between its offsets", expected=f"{needed} bytes for {dtype} {shape}", fix=_FIX,
        )  # fmt: skip
    return begin, end


def _is_counts(value: Json) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_name(name: str, path: str | os.PathLike[str]) -> None:
    if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH or name == _METADATA:
        raise FileError(
            f"'{path}': a tensor's name cannot be stored", got=repr(name)[:80], expected=f"1 to {MAX_NAME_LENGTH} characters"
        )
