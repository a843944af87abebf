"""`compile`: an Int8 model in a runtime, called with torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from truequant.errors import ArgumentError, ExportError
from truequant.integer import Int8Model, IntegerProgram
from truequant.integer.binding import bind, build
from truequant.runtimes.census import census, require_integer_kernels
from truequant.runtimes.export import onnx_bytes, program_of
from truequant.runtimes.session import Level, run, session

Runtime = Literal["onnxruntime"]


class CompiledModel:
    """A model in onnxruntime: torch tensors in and out, the structure that the model returns."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0, level: Level = "all") -> None:
        self.program = program
        data = onnx_bytes(program)
        require_integer_kernels(program, data)
        self._session = session(data, threads=threads, level=level)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        feeds = bind(self.program, args, kwargs)
        return build(self.program.outputs, run(self._session, feeds))

    def __repr__(self) -> str:
        return f"CompiledModel(onnxruntime, {len(self.program.nodes)} nodes)"


class EdgeReader:
    """A copy of the shipped graph that shows its inner edges; it must run the same integer kernels."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0, level: Level = "all") -> None:
        self.program = program
        shown = onnx_bytes(program, show_edges=True)
        self._check(census(onnx_bytes(program)), census(shown))
        self._session = session(shown, threads=threads, level=level)

    @staticmethod
    def _check(shipped: Mapping[str, int], shown: Mapping[str, int]) -> None:
        """The same integer kernels, as many of each."""
        counts = [{k: n for k, n in c.items() if k in _INTEGER} for c in (shipped, shown)]
        if counts[0] != counts[1]:
            raise ExportError(
                "showing the inner edges changed the kernels that onnxruntime runs, so that they prove nothing",
                got=counts[1],
                expected=counts[0],
            )

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The codes of every edge for these inputs, by name."""
        return run(self._session, bind(self.program, args, kwargs), list(self.program.edges))


_INTEGER = frozenset(
    (
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "ConvInteger",
        "QLinearAdd",
        "QLinearMul",
        "QLinearGlobalAveragePool",
    )
)


def compile(int8: Int8Model | IntegerProgram, runtime: Runtime = "onnxruntime", *, threads: int = 0) -> CompiledModel:
    """The model in a runtime: a callable with torch tensors in and out. threads: 0 for torch's own number."""
    if runtime != "onnxruntime":
        raise ArgumentError(f"no runtime {runtime!r}", got=repr(runtime), expected="'onnxruntime'")
    return CompiledModel(program_of(int8), threads=threads)
