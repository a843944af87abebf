"""Float checkpoints of others: safetensors files and `torch.save` state dicts, read without running anything of theirs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from truequant.errors import FileError

Format = Literal["truequant", "safetensors", "torch"]
_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def format_of(path: str | os.PathLike[str]) -> Format:
    """Whose file this is, by its first bytes; "truequant" too for what is nobody's, whose reader says what is wrong with it."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise FileError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:9] != b"{"):
        return "torch"
    if start[8:9] != b"{":
        return "truequant"
    try:
        with safetensors.safe_open(path, "pt") as opened:
            return "truequant" if "truequant" in (opened.metadata() or {}) else "safetensors"
    except Exception:  # its own reader tells more about a damaged container
        return "truequant"


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a safetensors file, and no other parts."""
    try:
        return _state(safetensors.torch.load_file(path), path)
    except FileError:
        raise
    except Exception as error:
        raise FileError(f"'{path}': not readable as safetensors", got=str(error)[:200]) from error


def read_torch(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a `torch.save` file and the names of its other parts. Only tensors and plain values are unpickled."""
    try:
        _check_zip(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileError:
        raise
    except Exception as error:  # unpickling reports damage and danger by many types
        raise FileError(
            f"'{path}': not readable as a torch.save file of tensors and plain values",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300],
            expected="torch.save(model.state_dict(), path)",
            fix="save the state dict, not the model; or save with tq.save_checkpoint",
        ) from error
    return _state(found, path)


def _check_zip(path: str | os.PathLike[str]) -> None:
    """torch.save compresses nothing: a record that unpacks to more than the file is none of its."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise FileError(f"'{path}': a compressed archive", expected="what torch.save writes, which is not compressed")


def _state(found: Any, path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    others: tuple[str, ...] = ()
    if isinstance(found, Mapping) and not _is_state(found):
        for key in _NESTED:
            if isinstance(found.get(key), Mapping) and _is_state(found[key]):
                others = tuple(str(k) for k in found if k != key)
                found = found[key]
                break
    if not isinstance(found, Mapping) or not _is_state(found):
        got = (
            f"a dict of {sorted({type(v).__name__ for v in found.values()})}"
            if isinstance(found, Mapping)
            else type(found).__name__
        )
        raise FileError(
            f"'{path}': holds no state dict", got=got[:200],
            expected=f"tensors by name, or a dict with them under one of {', '.join(map(repr, _NESTED))}",
        )  # fmt: skip
    return dict(found), others


def without_prefix(state: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """`state` without what DDP and torch.compile put before every name, unless the model's `names` have it too."""
    for prefix in _PREFIXES:
        if state and all(n.startswith(prefix) for n in state) and not any(n.startswith(prefix) for n in names):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_state(found: Mapping[Any, Any]) -> bool:
    return all(
        isinstance(name, str) and (isinstance(value, Tensor) or name.endswith("_extra_state")) for name, value in found.items()
    )
