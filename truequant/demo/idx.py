"""The idx format of MNIST: a magic number, the sizes, the bytes. Files may be gzipped, damaged or hostile.

0 0 8 RANK | size 1, big endian, 4 bytes | … | size RANK | one unsigned byte a value
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from truequant.errors import DataError

MAX_VALUES = 2**30  # bytes of one file after decompression
_GZIP_MAGIC = b"\x1f\x8b"
_FIX = "copy the file again from the MNIST distribution"


@dataclass(frozen=True, slots=True)
class IdxFile:
    """What a file holds: `values` is uint8, `sha256` the digest of the whole file, decompressed."""

    values: Tensor
    sha256: str


def read_idx(path: Path, rank: int) -> IdxFile:
    """Read an idx file of `rank` axes, gzipped or not. DataError says what is wrong with a missing or damaged one."""
    try:
        with path.open("rb") as raw:
            gzipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not gzipped:
                return _read(raw, rank, path)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return _read(cast(BinaryIO, unpacked), rank, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"'{path}' is damaged: gzip cannot unpack it", got=str(error), fix=_FIX) from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror or error}", fix=_FIX) from error


def _read(file: BinaryIO, rank: int, path: Path) -> IdxFile:
    head = file.read(4 + 4 * rank)
    magic = bytes([0, 0, 8, rank])
    if head[:4] != magic:
        raise DataError(
            f"'{path}' is not an idx file of unsigned bytes with {rank} axes",
            got=f"magic number {head[:4].hex(' ') or 'of an empty file'}", expected=magic.hex(" "), fix=_FIX,
        )  # fmt: skip
    if len(head) < 4 + 4 * rank:
        raise DataError(f"'{path}' ends inside its header", got=f"{len(head)} bytes", expected=f"{4 + 4 * rank}", fix=_FIX)
    sizes = [int.from_bytes(head[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(rank)]
    count = math.prod(sizes)
    if count > MAX_VALUES:
        raise DataError(f"'{path}' announces too much data", got=f"{count} values", expected=f"at most {MAX_VALUES}", fix=_FIX)
    data = _read_at_most(file, count + 1)  # one more than announced, so that a longer file shows
    if len(data) != count:
        raise DataError(
            f"'{path}' is {'cut short' if len(data) < count else 'longer than its header says'}",
            got=f"{len(data)} values" if len(data) < count else f"more than {count} values",
            expected=f"{count} values ({' x '.join(map(str, sizes))})", fix=_FIX,
        )  # fmt: skip
    digest = hashlib.sha256(head)
    digest.update(data)
    values = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return IdxFile(values.reshape(sizes), digest.hexdigest())


def _read_at_most(file: BinaryIO, limit: int) -> bytearray:
    """Grows with what is really there: a short file that announces a gigabyte costs its own length."""
    data = bytearray()
    while len(data) < limit and (part := file.read(min(limit - len(data), 2**20))):
        data += part
    return data
