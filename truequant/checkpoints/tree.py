"""Nested Python values as JSON and named tensors, and back: the states of optimizers, schedulers, loaders, and `extra`.

None, bool, int, str, finite floats, lists, and dicts whose keys are strings in sorted order stand for themselves. The rest is
an object with one key that begins with "$": other dicts (whose order is kept), tuples, counters, bytes, infinities and NaN,
tensors and NumPy arrays (by the name of a stored tensor). Tensors that share their memory exactly are stored once.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from truequant.errors import ArgumentTypeError, FileError
from truequant.files import Json
from truequant.files.limits import MAX_NAME_LENGTH
from truequant.observers import whole

MAX_DEPTH = 20
"""Levels of nesting: each may take three of the JSON's."""
_STORABLE = "None, bool, int, float, str, bytes, list, tuple, dict, Counter, tensors, NumPy arrays"


class TreeWriter:
    """Turns values into JSON and collects their tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[object, ...], str] = {}

    def encode(self, value: Any, where: str, depth: int = 0) -> Json:
        """JSON of `value`. ArgumentTypeError names the path of what cannot be stored."""
        if depth > MAX_DEPTH:
            raise ArgumentTypeError(
                f"save_checkpoint: {where[:200]} is nested too deeply", expected=f"at most {MAX_DEPTH} levels"
            )
        if value is None or type(value) in (bool, int, str):
            return value  # type: ignore[no-any-return]
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        if isinstance(value, Tensor):
            return {"$tensor": self._store(value, where)}
        if isinstance(value, (numpy.ndarray, numpy.generic)):
            return {"$scalar" if isinstance(value, numpy.generic) else "$array": self._store(_from_numpy(value, where), where)}
        if isinstance(value, bytes):
            return {"$bytes": base64.b64encode(value).decode()}
        if type(value) is list:
            return [self.encode(item, f"{where}/{i}", depth + 1) for i, item in enumerate(value)]
        if isinstance(value, (tuple, torch.Size)):
            return {"$tuple": [self.encode(item, f"{where}/{i}", depth + 1) for i, item in enumerate(value)]}
        if isinstance(value, Mapping):
            return self._mapping(value, where, depth)
        raise ArgumentTypeError(
            f"save_checkpoint: {where[:200]} cannot be stored without pickle",
            got=f"{type(value).__module__}.{type(value).__qualname__}",
            expected=_STORABLE,
            fix="store what it is made of",
        )

    def _mapping(self, value: Mapping[Any, Any], where: str, depth: int) -> Json:
        keys = list(value)
        if (
            all(type(k) is str and not k.startswith("$") for k in keys)
            and keys == sorted(keys)
            and not isinstance(value, Counter)
        ):
            return {k: self.encode(value[k], f"{where}/{k}", depth + 1) for k in keys}
        pairs: list[Json] = [
            [self.encode(k, f"{where}/key", depth + 1), self.encode(value[k], f"{where}/{k}", depth + 1)] for k in keys
        ]
        return {"$counter" if isinstance(value, Counter) else "$dict": pairs}

    def _store(self, tensor: Tensor, where: str) -> str:
        tensor = whole(tensor).detach()  # where it is spread over ranks, all of them are here
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise ArgumentTypeError(
                f"save_checkpoint: {where[:200]} cannot be stored",
                got=f"{tensor.dtype}, {tensor.layout}, on '{tensor.device}'", expected="a strided tensor with data",
            )  # fmt: skip
        # Every tensor seen is kept alive in `tensors`, so that its address means this tensor only. An empty one has none.
        key: tuple[object, ...] = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in self._names:
            return self._names[key]
        name = where if len(where) <= MAX_NAME_LENGTH - 16 else where[: MAX_NAME_LENGTH - 16]
        if name in self.tensors:
            name = f"{name}#{len(self.tensors)}"
        self.tensors[name] = tensor
        self._names[key] = name
        return name


class TreeReader:
    """Turns JSON that anybody may have written into values, and remembers which tensors were named."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where = tensors, where
        self.used: set[str] = set()

    def decode(self, value: Json, at: str) -> Any:
        """The value. FileError names the place of what `encode` cannot have written."""
        if isinstance(value, list):
            return [self.decode(item, f"{at}/{i}") for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if not any(key.startswith("$") for key in value):
            return {key: self.decode(item, f"{at}/{key}") for key, item in value.items()}
        if len(value) != 1:
            raise self.wrong(at, sorted(value), "one key that begins with '$'")
        ((tag, content),) = value.items()
        if tag == "$tuple" and isinstance(content, list):
            return tuple(self.decode(item, f"{at}/{i}") for i, item in enumerate(content))
        if tag in ("$dict", "$counter") and isinstance(content, list):
            return self._pairs(content, at, Counter() if tag == "$counter" else {})
        if tag in ("$tensor", "$array", "$scalar"):
            return self._tensor(tag, content, at)
        if tag == "$float" and content in ("inf", "-inf", "nan"):
            return float(content)
        if tag == "$bytes" and isinstance(content, str):
            try:
                return base64.b64decode(content, validate=True)
            except (binascii.Error, ValueError):
                raise self.wrong(at, content, "base64") from None
        raise self.wrong(at, value, "$dict, $counter, $tuple, $tensor, $array, $scalar, $float or $bytes")

    def wrong(self, at: str, got: object, expected: object) -> FileError:
        return FileError(f"{self.where}: '{at[:200]}' cannot be", got=repr(got)[:120], expected=expected)

    def _pairs(self, content: list[Json], at: str, found: dict[Any, Any]) -> dict[Any, Any]:
        for index, pair in enumerate(content):
            if not isinstance(pair, list) or len(pair) != 2:
                raise self.wrong(f"{at}/{index}", pair, "a key and a value")
            try:
                found[self.decode(pair[0], f"{at}/key")] = self.decode(pair[1], f"{at}/{index}")
            except TypeError:
                raise self.wrong(f"{at}/{index}", pair[0], "a key that can be hashed") from None
        return found

    def _tensor(self, tag: str, name: Json, at: str) -> Any:
        if not isinstance(name, str) or name not in self.tensors:
            raise self.wrong(at, name, "the name of a tensor in the file")
        self.used.add(name)
        tensor = self.tensors[name]
        if tag == "$tensor":
            return tensor
        if tensor.dtype == torch.bfloat16 or (tag == "$scalar" and tensor.dim()):
            raise self.wrong(at, f"{tensor.dtype} {tuple(tensor.shape)}", "what NumPy can hold")
        array = tensor.numpy()
        return array[()] if tag == "$scalar" else array


def _from_numpy(value: numpy.ndarray[Any, Any] | numpy.generic, where: str) -> Tensor:
    try:
        return torch.from_numpy(numpy.array(value))
    except TypeError:
        raise ArgumentTypeError(
            f"save_checkpoint: {where[:200]} cannot be stored", got=f"a NumPy array of {value.dtype}", expected=_STORABLE
        ) from None
