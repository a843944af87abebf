"""Runtimes by name: how a program is compiled for one, how its inner edges are read there, which ONNX files it has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from truequant.errors import ArgumentError
from truequant.integer import Int8Model, IntegerProgram, float_sums
from truequant.runtimes import litert, onnxruntime, openvino, torch
from truequant.runtimes.onnx.dialect import Form
from truequant.runtimes.programs import program_of
from truequant.schemes import (
    ONNXRUNTIME,
    ONNXRUNTIME_ARM,
    ONNXRUNTIME_SSE,
    ONNXRUNTIME_VNNI,
    PORTABLE,
    TARGETS,
    XNNPACK,
    Target,
)


class Edges(Protocol):
    """A copy of the compiled model that shows what lies between its nodes."""

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """compiled(program, threads=…): a callable like the model. edges(program, threads=…): a reader of its inner codes.

    exact: whether its arithmetic is the program's own; of another, verification grades WITHIN 1 at best.
    package: the optional package that it needs, None where it comes with torch.
    exceptions(program, target): sentences, where its codes might be others than the program's; None for a runtime that
        promises nothing.
    floats(program): the names whose codes it computes in float, in an order or with a rounding of its own, although the program
        does not: verification counts them among the islands.
    targets: names of the targets whose arithmetic its forms compute; None for a runtime that takes any, and is EXACT for none.
    machines, kinds: those that its file is promised on, and of which kinds they may be.
    forms: the forms of ONNX file that are written for it, by name, each as a function of the program.
    """

    name: str
    compiled: Callable[..., Callable[..., Any]]
    edges: Callable[..., Edges]
    exact: bool = True
    package: str | None = None
    exceptions: Callable[[IntegerProgram, Target], Iterator[str]] | None = None
    floats: Callable[[IntegerProgram], tuple[str, ...]] = float_sums
    targets: tuple[str, ...] | None = None
    machines: str = "every x86 CPU"
    kinds: str = ", with VNNI or without, with FMA or without"
    forms: Mapping[str, Callable[[IntegerProgram], Form]] = field(default_factory=dict)


_OF_ONNXRUNTIME = tuple(t.name for t in (ONNXRUNTIME, ONNXRUNTIME_VNNI, ONNXRUNTIME_SSE, ONNXRUNTIME_ARM, PORTABLE))

RUNTIMES: dict[str, Runtime] = {r.name: r for r in (
    Runtime(
        "onnxruntime", onnxruntime.CompiledModel, onnxruntime.EdgeReader, package="onnxruntime",
        exceptions=onnxruntime.exceptions, targets=_OF_ONNXRUNTIME, forms=onnxruntime.FORMS,
    ),
    Runtime(
        "openvino", openvino.OpenvinoModel, openvino.OpenvinoEdges, package="openvino", exceptions=openvino.exceptions,
        floats=openvino.computed_in_float, targets=_OF_ONNXRUNTIME, forms=openvino.FORMS,
    ),
    Runtime(
        "litert", litert.LitertModel, litert.LitertEdges, package="ai_edge_litert", exceptions=litert.exceptions,
        targets=(XNNPACK.name,),
        machines="x86 CPUs with AVX2", kinds="",
    ),
    Runtime("torch.export", torch.ExportedModel, torch.ExportedEdges, exact=False),
)}  # fmt: skip

FORMS: dict[str, Callable[[IntegerProgram], Form]] = {
    name: form for runtime in RUNTIMES.values() for name, form in runtime.forms.items()
}
"""The forms of ONNX file by the names that a caller gives; what a form is follows the program's target."""


def require_target(program: IntegerProgram, runtime: Runtime, doing: str) -> None:
    """`ArgumentError` for a program whose target's arithmetic the runtime does not compute; unknown targets pass."""
    if runtime.targets is None or program.target in runtime.targets or program.target not in TARGETS:
        return
    others = [r.name for r in RUNTIMES.values() if program.target in (r.targets or ())]
    retarget = f"calibrate again for one of its targets: tq.prepare(model, x, tq.QConfig().for_target({runtime.targets[0]!r}))"
    raise ArgumentError(
        f"{doing}: runtime '{runtime.name}' does not compute the arithmetic of target '{program.target}'",
        got=f"a program for target '{program.target}'", expected=" or ".join(map(repr, runtime.targets)),
        fix=f"runtime {others[0]!r}; or {retarget}" if others else retarget,
    )  # fmt: skip


def form_of(program: IntegerProgram, name: str) -> Form:
    """The form of a name for a program. `ArgumentError` for another name."""
    if name not in FORMS:
        raise ArgumentError(f"no form {name!r} of an ONNX file", got=repr(name), expected=" or ".join(map(repr, FORMS)))
    if program.target in TARGETS and TARGETS[program.target].runs_here:  # others get plain QDQ, for tools that are not here
        owner = next(runtime for runtime in RUNTIMES.values() if name in runtime.forms)
        require_target(program, owner, "export_onnx")
    return FORMS[name](program)


def runtime_of(name: str) -> Runtime:
    """The runtime of a name."""
    if name not in RUNTIMES:
        raise ArgumentError(f"no runtime {name!r}", got=repr(name), expected=", ".join(map(repr, RUNTIMES)))
    return RUNTIMES[name]


def default_runtime(program: IntegerProgram) -> str:
    """The runtime that computes the program's target, onnxruntime for those that have none."""
    return next((r.name for r in RUNTIMES.values() if program.target in (r.targets or ())), "onnxruntime")


def compile(
    int8: Int8Model | IntegerProgram, runtime: str = "onnxruntime", *, threads: int = 0, **options: Any
) -> Callable[..., Any]:
    """The model in a runtime: a callable with torch tensors in and out.

    runtime: "onnxruntime", "openvino", "litert" (programs for target "xnnpack"), or "torch.export", whose float ops follow the
        integers up to rounding.
    threads: 0 for torch's own number. options: of that runtime, `form` and `level` for onnxruntime.
    Raises `ArgumentError` for another runtime or option, or a target whose arithmetic that runtime does not compute;
    `ExportError` where it does not run the program's integer kernels.
    """
    chosen = runtime_of(runtime)
    known = inspect.signature(chosen.compiled).parameters.keys() - {"program", "threads"}
    if unknown := sorted(options.keys() - known):
        raise ArgumentError(
            f"no option {unknown[0]!r} of runtime {runtime!r}", got=", ".join(unknown),
            expected=", ".join(["threads", *sorted(known)]),
        )  # fmt: skip
    program = program_of(int8)
    require_target(program, chosen, "compile")
    return chosen.compiled(program, threads=threads, **options)
