"""How an honest file becomes a hostile one, by kind of file: each change is drawn from a `random.Random` alone.

Bits are flipped, parts cut, doubled, exchanged; numbers, names and levels of the JSON replaced, under a SHA-256 that fits
again, so that what is read behind it is reached too.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from truequant.errors import TruequantError
from truequant.files import read_container, write_container

Change = Callable[[random.Random, bytes, Path], bytes]
"""From the source of chance, a file's bytes, and a path to write intermediate files to."""

_JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**30, 0.0, -1.5, 1e308, 5e-324, "", "weight", "/dev/zero",
    "../../etc/passwd", "\0", "é" * 300, "os.system", "(a+)+$", [], {}, [[]], [0] * 40, {"type": "Plan"},
    {"$tensor": "model/0.weight"}, {"$dict": [[1, 2]]}, {"$float": "nan"}, {"float": "nan"}, {"float": "inf"},
    {"regex": "(", "flags": 0}, {"class": "os.system"}, {"$bytes": "AA=="}, "float", "int4", "nan",
)  # fmt: skip
_LIES: dict[str, tuple[Any, ...]] = {
    "dtype": ("F64", "F4", 7), "shape": ([-1], [2**62, 2**62], [0], [2**40], 3), "data_offsets": ([8, 0], [0, 2**50], [-1, 7]),
}  # fmt: skip


def _value(source: random.Random, value: Any) -> Any:
    """A JSON value with one to three places changed."""
    value = copy.deepcopy(value)
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        place = value
        while isinstance(place, (dict, list)) and place:
            key = source.choice(list(place)) if isinstance(place, dict) else source.randrange(len(place))
            inner = place[key]
            if isinstance(inner, (dict, list)) and inner and source.random() < 0.85:
                place = inner
                continue
            what = source.randrange(7)
            if what < 4:
                place[key] = copy.deepcopy(source.choice(_JUNK))
            elif what == 4:
                del place[key]
            elif what == 5 and isinstance(inner, (int, float)) and not isinstance(inner, bool):
                place[key] = source.choice((-inner, inner + 1, inner * 2, inner * 10**9, float(inner), int(inner)))
            elif isinstance(place, list):
                place.append(copy.deepcopy(inner))
            else:
                place[str(source.choice(_JUNK))] = inner
            break
    return value


def _text(source: random.Random, text: str) -> str:
    """A JSON text that JSON itself does not allow, or that goes deep."""
    depth = source.choice((10, 70, 5000))
    forms = (
        "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, text.replace(":", ":" + "[" * depth, 1), text + text,
        text.replace("1", "NaN", 1), text.replace("0", "1" * 5000, 1), text.replace("{", '{"type":1,"type":2,', 1),
        text.replace("0", "1e999", 1), text[: source.randrange(len(text) + 1)],
    )  # fmt: skip
    return source.choice(forms)


def _table(source: random.Random, data: bytes) -> bytes:
    """A container whose table lies, before the same bytes."""
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    if source.random() < 0.5:
        entry = table[source.choice([n for n in table if n != "__metadata__"])]
        key = source.choice(sorted(entry))
        entry[key] = source.choice(_LIES[key])
        text = json.dumps(table)
    else:
        text = json.dumps(_value(source, table)) if source.random() < 0.7 else _text(source, json.dumps(table))
    packed = text.encode()
    return source.choice((len(packed), len(packed), len(packed), 2**40, 0)).to_bytes(8, "little") + packed + data[8 + length :]


def change_signed(digest: Callable[[Mapping[str, Any], Mapping[str, Any]], str]) -> Change:
    """A container with another header or other tensors, and a SHA-256 that fits them."""
    parsed: dict[bytes, Any] = {}

    def change(source: random.Random, data: bytes, scratch: Path) -> bytes:
        if data[:2] == b"PK":
            return flip(source, data, scratch)
        if source.random() < 0.3:
            return _table(source, data)
        if data not in parsed:
            scratch.write_bytes(data)
            parsed[data] = read_container(scratch)
        header, tensors = parsed[data]
        header, tensors = _value(source, header), dict(tensors)
        if source.random() < 0.3:
            name = source.choice(sorted(tensors))
            old = tensors[name]
            tensors[name] = source.choice(
                (old.reshape(-1)[:1], torch.zeros(0), torch.full_like(old, 1), old.double(), old.reshape(1, *old.shape))
            )
            if old.is_floating_point():
                tensors[name] = torch.full_like(old, source.choice((float("nan"), float("inf"), -1.0, 0.0, 1e-45, 3e38)))
        try:
            header["sha256"] = digest(header, tensors)
            write_container(scratch, header, tensors)
        except TruequantError:  # what our own writer does not write
            return _table(source, data)
        return scratch.read_bytes()

    return change


def change_json(source: random.Random, data: bytes, scratch: Path) -> bytes:
    """A JSON document."""
    text = data.decode()
    return (json.dumps(_value(source, json.loads(text))) if source.random() < 0.8 else _text(source, text)).encode()


def change_toml(source: random.Random, data: bytes, scratch: Path) -> bytes:
    """A TOML document."""
    lines = data.decode().splitlines()
    at = source.randrange(len(lines))
    key = lines[at].partition("=")[0]
    values = (
        '"nan"', "nan", "inf", "-1", "1e400", "9" * 900, "9" * 5000, "[" * 900, "[" * 3000, '""', "{}", "true", "1979-05-27",
        '{ kind = "mse", bins = 99999999999 }', '{ kind = "percentile", percent = nan }', "{ dtype = 3 }", '"\\u0000"',
        '{ kind = "per-group", size = 0 }', "[[1]]", '{ kind = "moving-average", momentum = inf }', "{ dtype = {} }", "[]",
    )  # fmt: skip
    if source.random() < 0.7:
        lines[at] = f"{key}= {source.choice(values)}"
    else:
        added = (lines[at], "a." * source.choice((5, 400, 2000)) + "b = 1", "[" * 900, "[[rule]]")
        lines.insert(source.randrange(len(lines)), source.choice(added))
    return "\n".join(lines).encode()


def change_sizes(source: random.Random, data: bytes, scratch: Path) -> bytes:
    """An idx file that declares other sizes."""
    raw = bytearray(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    at = source.randrange(4, 8)
    raw[at : at + 4] = source.choice((0, 1, 2**31, 2**32 - 1, 65536)).to_bytes(4, "big")
    return gzip.compress(bytes(raw), mtime=0) if source.random() < 0.3 else bytes(raw)


def flip(source: random.Random, data: bytes, _: Path) -> bytes:
    """Bits flipped, a part cut out, doubled or exchanged, an end cut off."""
    changed = bytearray(data)
    if not changed:
        return b""
    what = source.randrange(5)
    a, b = sorted((source.randrange(len(changed)), source.randrange(len(changed))))
    if what <= 1:
        for _ in range(source.choice((1, 1, 2, 8))):
            changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
    elif what == 2:
        return bytes(changed[:a])
    elif what == 3:
        del changed[a : min(b, a + 64)]
    else:
        changed[a:a] = changed[b : b + 64] or source.randbytes(8)
    return bytes(changed)
