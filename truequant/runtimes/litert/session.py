"""LiteRT's interpreter over torch tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truequant.errors import ExportError
from truequant.runtimes.litert.graph import Place, TfliteFile
from truequant.runtimes.packages import package


class Session:
    """One file in the interpreter, with its XNNPACK delegate. left_out: the operators that the delegate did not take."""

    def __init__(self, file: TfliteFile, threads: int = 0) -> None:
        self._file = file
        interpreter = package("ai_edge_litert.interpreter", "litert").Interpreter
        try:
            self._interpreter = interpreter(model_content=file.data, num_threads=threads or torch.get_num_threads())
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                "LiteRT does not take this file", got=str(error).splitlines()[0][:300], fix="another release of ai-edge-litert"
            ) from error
        self._inputs = [d["index"] for d in self._interpreter.get_input_details()]
        self._outputs = [d["index"] for d in self._interpreter.get_output_details()]
        self._sizes: tuple[tuple[int, ...], ...] = ()
        self.left_out = _left_out(self._interpreter._get_ops_details(), self._outputs)

    def run(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The codes of the file's outputs, from those of its inputs, both with the program's axes."""
        places = self._file.inputs
        arrays = [_to_file(codes[name], places[name]) for name in sorted(places, key=lambda n: places[n].position)]
        sizes = tuple(a.shape for a in arrays)
        if sizes != self._sizes:
            for index, size in zip(self._inputs, sizes, strict=True):
                self._interpreter.resize_tensor_input(index, list(size))
            self._interpreter.allocate_tensors()
            self._sizes = sizes
        for index, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        found = [self._interpreter.get_tensor(index) for index in self._outputs]
        return {name: _from_file(found[place.position], place) for name, place in self._file.outputs.items()}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An operator that a kernel of LiteRT's own computes, and whether it computes codes: such kernels round otherwise."""

    op: str
    computes: bool


_MOVING = frozenset({
    "RESHAPE", "TRANSPOSE", "CONCATENATION", "STRIDED_SLICE", "GATHER", "PAD", "PADV2", "MAX_POOL_2D",
    "RESIZE_NEAREST_NEIGHBOR", "DEPTH_TO_SPACE", "MINIMUM", "MAXIMUM", "CAST",
})  # fmt: skip
"""Operators that are exact in every kernel, since they move or choose codes."""


def _left_out(operators: Sequence[Mapping[str, Any]], outputs: Sequence[int]) -> tuple[LeftOut, ...]:
    """What is computed beside the delegate: the interpreter lists its operators too, so that the outputs are followed back."""
    writers = {int(t): o for o in operators for t in o["outputs"]}  # the delegate comes last and stands for what it took
    found: dict[int, LeftOut] = {}
    seen: set[int] = set()
    wanted = list(outputs)
    while wanted:
        tensor = int(wanted.pop())
        operator = writers.get(tensor)
        if operator is None or operator["index"] in seen:
            continue
        seen.add(operator["index"])
        wanted += [t for t in operator["inputs"] if t >= 0]
        if (name := operator["op_name"]) != "DELEGATE":
            whole = np.int32 in operator["result_types"]  # sums of whole numbers are exact everywhere
            found[operator["index"]] = LeftOut(name, name not in _MOVING and not whole)
    return tuple(found[index] for index in sorted(found))


def _to_file(codes: Tensor, place: Place) -> Any:
    return np.ascontiguousarray(codes.detach().cpu().permute(place.order).numpy())


def _from_file(array: Any, place: Place) -> Tensor:
    found = torch.from_numpy(np.array(array))
    if place.flat is not None:
        channels, *space = (n for n in place.flat if n is not None)
        found = found.reshape(len(found), *space, channels).movedim(-1, 1).reshape(len(found), -1)
    back = sorted(range(len(place.order)), key=lambda axis: place.order[axis])
    return found.permute(back).contiguous()
