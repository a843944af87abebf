"""The container: what goes in comes out, and equal contents are equal bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from truequant.errors import FileError
from truequant.files import read_container, write_container

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3), (1, 2, 3, 4, 5)], ids=str)
def test_every_dtype_and_shape_comes_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    size = write_container(tmp_path / "x.tq", {"n": 1}, {"t": tensor})
    header, tensors = read_container(tmp_path / "x.tq")
    assert header == {"n": 1}
    assert tensors["t"].dtype == dtype
    assert torch.equal(tensors["t"], tensor)
    assert size == (tmp_path / "x.tq").stat().st_size


def test_special_floats_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x80000000, 1], dtype=torch.int64).to(torch.int32)
    write_container(tmp_path / "x.tq", {}, {"t": bits.view(torch.float32)})
    assert torch.equal(read_container(tmp_path / "x.tq")[1]["t"].view(torch.int32), bits)


def test_views_strides_shared_memory_and_parameters_are_stored_whole(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base, "transposed": base.t(), "part": base[1:3, ::2], "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(base), "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }  # fmt: skip
    write_container(tmp_path / "x.tq", {}, tensors)
    _, back = read_container(tmp_path / "x.tq")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_no_tensor_and_an_empty_header_are_a_file(tmp_path: Path) -> None:
    write_container(tmp_path / "x.tq", {}, {})
    assert read_container(tmp_path / "x.tq") == ({}, {})


def test_any_safetensors_reader_reads_it(tmp_path: Path) -> None:
    write_container(tmp_path / "x.tq", {"kind": "test"}, {"a": torch.ones(2)})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "x.tq")["a"], torch.ones(2))


def test_equal_contents_give_equal_bytes_in_any_order_process_and_place(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((i,), i, dtype=dtype) for i, dtype in enumerate(DTYPES)}
    write_container(tmp_path / "a", {"x": 1, "y": 2}, tensors)
    write_container(tmp_path / "b", {"y": 2, "x": 1}, dict(reversed(tensors.items())))
    script = (
        "import sys, torch; from truequant.files import read_container, write_container;"
        "write_container(sys.argv[2], *read_container(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "a", tmp_path / "c"], check=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a").read_bytes()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("", torch.ones(1), "a tensor's name cannot be stored"),
        ("__metadata__", torch.ones(1), "a tensor's name cannot be stored"),
        ("x" * 2000, torch.ones(1), "a tensor's name cannot be stored"),
        ("t", torch.ones(1, dtype=torch.complex64), "tensor 't' has a type that the container does not hold"),
        ("t", torch.eye(2).to_sparse(), "tensor 't' has a type that the container does not hold"),
        ("t", torch.ones((1,) * 17), "tensor 't' has too many axes\n  got:      17\n  expected: at most 16"),
    ],
    ids=["empty name", "reserved name", "long name", "complex", "sparse", "17 axes"],
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_written(
    tmp_path: Path, name: str, tensor: torch.Tensor, message: str
) -> None:
    with pytest.raises(FileError) as caught:
        write_container(tmp_path / "x.tq", {}, {name: tensor})
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="'.*nowhere.tq' cannot be read: No such file or directory"):
        read_container(tmp_path / "nowhere.tq")
