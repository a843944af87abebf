"""A program in OpenVINO on the CPU, called with torch tensors, and a copy of it that shows its inner edges."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from truequant.integer import IntegerProgram
from truequant.integer.binding import Binder, bind
from truequant.planning import build
from truequant.runtimes.onnx.graph import placed
from truequant.runtimes.openvino.dialect import FORM
from truequant.runtimes.openvino.session import compiled, kernels, run


class OpenvinoModel:
    """A model in OpenVINO: torch tensors in and out, the structure that the model returns."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0) -> None:
        self.program, self._bind = program, Binder(program)
        with placed(program, FORM) as (data, folder):
            self._model = compiled(data, threads, folder)
        self._request = self._model.create_infer_request()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return build(self.program.outputs, run(self._request, self._bind(args, kwargs)))

    def kernels(self) -> dict[str, int]:
        """How many kernels of each kind and precision it runs: `Convolution u8` is an int8 one."""
        return kernels(self._model)

    def __repr__(self) -> str:
        return f"OpenvinoModel({len(self.program.nodes)} nodes)"


class OpenvinoEdges:
    """A copy of the compiled graph that shows its inner edges."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0) -> None:
        self.program = program
        with placed(program, FORM, show_edges=True) as (data, folder):
            self._request = compiled(data, threads, folder).create_infer_request()

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The codes of every edge for these inputs, by name."""
        found = run(self._request, bind(self.program, args, kwargs))
        return {name: found[name] for name in self.program.edges}
