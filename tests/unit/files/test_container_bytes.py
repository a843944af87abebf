"""What the container writes is, byte for byte, what the safetensors library writes."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from truequant.files import read_container, read_header, write_container
from truequant.files.container import _DTYPES


def test_the_bytes_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {
        f'{"xyzé"[i * 7 % 4]} "{dtype}"\\ {shape}\n': (torch.rand(shape) * 50).to(dtype)
        for i, dtype in enumerate(_DTYPES.values())
        for shape in ((), (3,), (2, 5), (0, 4))
    }
    tensors["strided"] = torch.rand(6, 4).t()[::2]
    size = write_container(tmp_path / "x", {"a": [1, 'é"']}, tensors)
    data = (tmp_path / "x").read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors["strided"] = tensors["strided"].contiguous()
    assert data == safetensors.torch.save(tensors, metadata)
    assert size == len(data)
    header, read = read_container(tmp_path / "x")
    assert header == read_header(tmp_path / "x") == {"a": [1, 'é"']}
    assert all(torch.equal(t, read[n]) for n, t in tensors.items())
