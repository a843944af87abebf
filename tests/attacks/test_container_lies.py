"""Container files that lie, are damaged or come from somebody else: each is refused by name, none is half read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from truequant.errors import FileError
from truequant.files import loads, read_container, write_container
from truequant.files.limits import MAX_HEADER_BYTES, MAX_TENSORS

ENTRY = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
METADATA = {"truequant": "{}"}


def container(table: object, data: bytes = b"abcd", length: int | None = None) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def refuse(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_container(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tq"


def test_the_honest_file_of_these_tests_is_read(path: Path) -> None:
    path.write_bytes(container({"__metadata__": METADATA, "a": ENTRY}))
    header, tensors = read_container(path)
    assert header == {}
    assert tensors["a"].tolist() == list(b"abcd")


TABLES: dict[str, tuple[object, str]] = {
    "not text": (b"\xff\xfe{}", "the table is not text"),
    "not json": (b"{'a': 1}", "not JSON"),
    "not an object": ([1], "the table is not an object"),
    "nested": (b"[" * 100_000, "nested too deeply"),
    "no metadata": ({"a": ENTRY}, "not of truequant\n  got:      metadata keys None"),
    "foreign metadata": (
        {"__metadata__": {"format": "pt"}, "a": ENTRY},
        "not of truequant\n  got:      metadata keys ['format']",
    ),
    "metadata of a wrong type": ({"__metadata__": {"truequant": 1}, "a": ENTRY}, "not of truequant"),
    "header not json": ({"__metadata__": {"truequant": "{"}, "a": ENTRY}, "header: not JSON"),
    "header not an object": (
        {"__metadata__": {"truequant": "[]"}, "a": ENTRY},
        "the header is not an object\n  got:      list",
    ),
    "header with NaN": ({"__metadata__": {"truequant": '{"s":NaN}'}, "a": ENTRY}, "not a finite number\n  got:      NaN"),
    "header with 1e999": ({"__metadata__": {"truequant": '{"s":1e999}'}, "a": ENTRY}, "a number too large\n  got:      1e999"),
    "name twice": (
        b'{"__metadata__":{"truequant":"{}"},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{}}',
        "the key 'a' stands twice",
    ),
    "no entry": ({"__metadata__": METADATA, "a": 3}, "tensor 'a' has no complete entry"),
    "half an entry": ({"__metadata__": METADATA, "a": {"dtype": "U8", "shape": [4]}}, "tensor 'a' has no complete entry"),
    "unknown dtype": ({"__metadata__": METADATA, "a": ENTRY | {"dtype": "F8_E4M3"}}, "unknown dtype\n  got:      'F8_E4M3'"),
    "negative size": ({"__metadata__": METADATA, "a": ENTRY | {"shape": [-4]}}, "impossible shape"),
    "fractional size": ({"__metadata__": METADATA, "a": ENTRY | {"shape": [4.0]}}, "impossible shape"),
    "size true": ({"__metadata__": METADATA, "a": ENTRY | {"shape": [True]}}, "impossible shape"),
    "17 axes": ({"__metadata__": METADATA, "a": ENTRY | {"shape": [1] * 17}}, "impossible shape"),
    "overflowing shape": ({"__metadata__": METADATA, "a": ENTRY | {"shape": [2**62, 4]}}, "lies about its size"),
    "three offsets": ({"__metadata__": METADATA, "a": ENTRY | {"data_offsets": [0, 4, 4]}}, "impossible offsets"),
    "offsets turned round": ({"__metadata__": METADATA, "a": ENTRY | {"data_offsets": [4, 0]}}, "lies about its size"),
    "size and offsets differ": ({"__metadata__": METADATA, "a": ENTRY | {"shape": [5]}}, "lies about its size"),
    "overlap": ({"__metadata__": METADATA, "a": ENTRY, "b": ENTRY}, "tensor 'b' overlaps 'a'"),
    "gap": (
        {"__metadata__": METADATA, "a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}},
        "tensor 'a' leaves a gap behind the start",
    ),
    "past the end": (
        {"__metadata__": METADATA, "a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}},
        "the file is cut short\n  got:      4 bytes of tensors\n  expected: 9 bytes, as its table says",
    ),
    "bytes behind": (
        {"__metadata__": METADATA, "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}},
        "the file has bytes behind its last tensor",
    ),
    "empty name": ({"__metadata__": METADATA, "": ENTRY}, "a tensor's name cannot be stored"),
}


@pytest.mark.parametrize("lie", TABLES)
def test_a_table_that_lies(path: Path, lie: str) -> None:
    table, message = TABLES[lie]
    refuse(path, container(table), message)


def test_too_many_tensors(path: Path) -> None:
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    table = {"__metadata__": METADATA} | {str(i): empty for i in range(MAX_TENSORS + 1)}
    refuse(path, container(table, b""), f"too many tensors\n  got:      {MAX_TENSORS + 1}")


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_a_huge_announced_table_allocates_nothing(path: Path, length: int) -> None:
    refuse(path, container({}, length=length), f"a table of {length} bytes announced")


def test_files_of_other_kinds(path: Path) -> None:
    refuse(path, b"", "too short for a container\n  got:      0 bytes")
    refuse(path, b"PK\x03\x04 a zip file, as torch.save writes it", "not a truequant file\n  got:      a file of torch.save")
    refuse(path, b"\xff\xff\xff\xff\xff\xff\xff\xff anything", "not a truequant file, or its first bytes are damaged")
    refuse(path, b"\x93NUMPY\x01\x00 a numpy file", "not a truequant file")
    refuse(path, safetensors.torch.save({"a": torch.ones(1)}), "a safetensors file, but not of truequant")


def test_every_cut_is_found(path: Path) -> None:
    write_container(path, {"x": 1}, {"a": torch.arange(3), "b": torch.ones(2)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError):
            read_container(path)
    refuse(path, whole + b"\0", "the file has bytes behind its last tensor")


def test_a_flipped_byte_of_the_table_never_crashes_and_never_changes_a_size_unseen(path: Path) -> None:
    write_container(path, {"x": 1}, {"a": torch.arange(3), "b": torch.ones(2)})
    whole = path.read_bytes()
    table_end = 8 + int.from_bytes(whole[:8], "little")
    for position in range(table_end):
        for flip in (1, 0x80, 0xFF):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            try:
                _, tensors = read_container(path)
            except FileError:
                continue
            assert sum(tensor.nbytes for tensor in tensors.values()) == 32


def test_a_folder_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        read_container(tmp_path)


@pytest.mark.parametrize(
    "text", ['"' + '\\"' * 200_000, '"\\' * 100_000, '["' * 60, "9" * 10_000, "", "[1,]", "{}{}", '{"a":1}x']
)
def test_json_made_to_hurt_is_refused_at_once(text: str) -> None:
    start = time.process_time()  # not what other processes take
    with pytest.raises(FileError):
        loads(text)
    assert time.process_time() - start < 2


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tq"
    script = (
        "import sys, torch; from truequant.files import write_container\n"
        "for i in range(10**6):\n"
        "    write_container(sys.argv[1], {'i': i}, {'t': torch.full((100_000,), i)})\n"
        "    print(i, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        written = -1
        for _ in range(20):
            written = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        written = max([written, *map(int, child.stdout.read().split())])
    header, tensors = read_container(path)
    assert isinstance(header["i"], int)
    assert header["i"] >= written
    assert torch.equal(tensors["t"], torch.full((100_000,), header["i"]))
