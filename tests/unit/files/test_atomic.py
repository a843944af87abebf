"""Atomic writes: the new file or the old one, never a part."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

import pytest

from truequant.errors import FileError
from truequant.files import atomic_write


def test_writes_bytes_and_what_a_function_writes(tmp_path: Path) -> None:
    assert atomic_write(tmp_path / "a", b"abc") == 3
    assert atomic_write(tmp_path / "b", lambda file: file.write(b"defg")) == 4
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert (tmp_path / "b").read_bytes() == b"defg"


def test_a_failing_writer_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise KeyError("stop")

    with pytest.raises(KeyError):
        atomic_write(tmp_path / "a", fail)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with (tmp_path / "a").open("rb") as reader:
        atomic_write(tmp_path / "a", b"new")
        assert reader.read() == b"old"


def test_mode_of_the_old_file_and_umask_of_a_new_one_hold(tmp_path: Path) -> None:
    (tmp_path / "old").touch(mode=0o600)
    atomic_write(tmp_path / "old", b"x")
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o600
    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "new", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o644


def test_a_link_keeps_pointing_where_it_did(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_missing_folder_and_a_folder_as_target_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        atomic_write(tmp_path / "no" / "a", b"x")
    assert str(caught.value) == (
        f"'{tmp_path / 'no' / 'a'}' cannot be written: its folder does not exist\n"
        f"  got:      {tmp_path / 'no'}\n  fix:      make the folder first"
    )
    with pytest.raises(FileError, match="it is a folder"):
        atomic_write(tmp_path, b"x")


def test_an_error_of_the_disk_is_a_file_error_and_leaves_no_litter(tmp_path: Path) -> None:
    def full(file: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        atomic_write(tmp_path / "a", full)
    assert list(tmp_path.iterdir()) == []
