"""Runtimes by name: how a program is compiled for one, and how its inner edges are read there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from truequant.errors import ArgumentError
from truequant.integer import Int8Model, IntegerProgram
from truequant.runtimes.export import program_of
from truequant.runtimes.onnxruntime.model import CompiledModel, EdgeReader
from truequant.runtimes.openvino.model import OpenvinoEdges, OpenvinoModel
from truequant.runtimes.torch.program import ExportedEdges, ExportedModel


class Edges(Protocol):
    """A copy of the compiled model that shows what lies between its nodes."""

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """compiled(program, threads=…): a callable like the model. edges(program, threads=…): a reader of its inner codes.

    exact: whether its arithmetic is the program's own; of another, verification grades WITHIN 1 at best.
    """

    name: str
    compiled: Callable[..., Callable[..., Any]]
    edges: Callable[..., Edges]
    exact: bool = True


RUNTIMES: dict[str, Runtime] = {r.name: r for r in (
    Runtime("onnxruntime", CompiledModel, EdgeReader), Runtime("openvino", OpenvinoModel, OpenvinoEdges),
    Runtime("torch.export", ExportedModel, ExportedEdges, exact=False),
)}  # fmt: skip


def runtime_of(name: str) -> Runtime:
    """The runtime of a name."""
    if name not in RUNTIMES:
        raise ArgumentError(f"no runtime {name!r}", got=repr(name), expected=", ".join(map(repr, RUNTIMES)))
    return RUNTIMES[name]


def compile(
    int8: Int8Model | IntegerProgram, runtime: str = "onnxruntime", *, threads: int = 0, **options: Any
) -> Callable[..., Any]:
    """The model in a runtime: a callable with torch tensors in and out.

    runtime: "onnxruntime", "openvino", or "torch.export", whose float ops follow the integers up to rounding.
    threads: 0 for torch's own number. options: of that runtime, `form` and `level` for onnxruntime.
    Raises `ArgumentError` for another runtime, `ExportError` where it does not run the program's integer kernels.
    """
    return runtime_of(runtime).compiled(program_of(int8), threads=threads, **options)
