"""A program in onnxruntime, called with torch tensors, and a copy of it that shows its inner edges."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from truequant.integer import IntegerProgram
from truequant.integer.binding import Binder, bind
from truequant.planning import build
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnx.graph import placed
from truequant.runtimes.onnxruntime.census import census, require_integer_kernels, same_kernels
from truequant.runtimes.onnxruntime.dialect import form_of
from truequant.runtimes.onnxruntime.session import Level, run, session


class CompiledModel:
    """A model in onnxruntime: torch tensors in and out, the structure that the model returns."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0, level: Level = "all", form: Layout = "qdq") -> None:
        self.program, self._bind, self._outputs = program, Binder(program), list(program.output_names())
        with placed(program, form_of(program, form)) as (data, folder):
            require_integer_kernels(program, data, level, folder)
            self._session = session(data, threads=threads, level=level, folder=folder)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return build(self.program.outputs, run(self._session, self._bind(args, kwargs), self._outputs))

    def __repr__(self) -> str:
        return f"CompiledModel(onnxruntime, {len(self.program.nodes)} nodes)"


class EdgeReader:
    """A copy of the shipped graph that shows its inner edges; it must run the same integer kernels."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0, level: Level = "all", form: Layout = "qdq") -> None:
        self.program = program
        with placed(program, form_of(program, form)) as (shipped, folder):
            kernels = census(shipped, level, folder)
        with placed(program, form_of(program, form), show_edges=True) as (shown, folder):
            same_kernels(kernels, census(shown, level, folder))
            self._session = session(shown, threads=threads, level=level, folder=folder)

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The codes of every edge for these inputs, by name."""
        return run(self._session, bind(self.program, args, kwargs), list(self.program.edges))
