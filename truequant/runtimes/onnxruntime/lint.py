"""`lint`: which fusions onnxruntime will miss in an exported file, and why, from the program alone.

Whatever is missed, the codes are the program's: a miss costs time, a pass over memory or a float kernel. Only sums in float32
cost exactness too, and only they are said to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from truequant.errors import ArgumentError
from truequant.integer import Int8Model, IntegerProgram, is_wide, load
from truequant.integer.nodes import (
    FLOATING,
    Add,
    Clamp,
    Conv,
    Island,
    Linear,
    MaxPool,
    Mul,
    Node,
    Normalize,
    Quantize,
    Sub,
    Table,
)
from truequant.runtimes.onnx.forms import FormName, Layout
from truequant.runtimes.onnx.kernels import COMPUTING, kernels_of
from truequant.runtimes.onnx.layer_constants import packs
from truequant.runtimes.onnx.reading import read_program
from truequant.runtimes.onnx.writer import limits_of
from truequant.runtimes.onnxruntime.float_tables import float_kernel_of
from truequant.runtimes.onnxruntime.pair_proofs import proven
from truequant.runtimes.onnxruntime.pooled_sums import pooling_of
from truequant.runtimes.onnxruntime.session import Level
from truequant.runtimes.programs import program_of
from truequant.runtimes.saturation import saturates
from truequant.runtimes.targets import runs_here
from truequant.schemes import TARGETS, Target

Kind = Literal["level", "wide", "pairs", "table", "clamp", "weights", "packed", "values", "float"]


@dataclass(frozen=True, slots=True)
class Miss:
    """At `node` a fusion does not happen: `runs` is what runs instead or besides, `why` the reason, `fix` what changes it.

    kind: "level" (the optimization level does not fuse), "wide" (16-bit codes: a float kernel), "pairs" (an add, mul or sub as
    a table of all pairs), "table" (a function of one code as a pass of its own), "clamp" (a clamp that the kernel does not
    hold), "weights" (unsigned, at half the speed where VNNI is), "packed" (weights unpacked at each call), "values" (sums that
    leave as floats), "float" (an island that the plan left in float).
    """

    node: str
    kind: Kind
    runs: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"'{self.node}': {self.runs}, because {self.why}; {self.fix}"


@dataclass(frozen=True, slots=True)
class Lint:
    """fused: the integer kernel that each node becomes, "Conv" for float sums of integers that are pooled first (see
    `pooled_sums`), which miss nothing at any level; missed: what does not fuse, in the order of the program.
    """

    fused: Mapping[str, str]
    missed: tuple[Miss, ...]
    form: Layout = "qdq"
    level: Level = "all"
    target: str = "onnxruntime"

    def of(self, kind: Kind) -> tuple[Miss, ...]:
        """The misses of one kind."""
        return tuple(miss for miss in self.missed if miss.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain strings, for JSON."""
        return {
            "form": self.form, "level": self.level, "target": self.target, "fused": dict(self.fused),
            "missed": [asdict(miss) for miss in self.missed],
        }  # fmt: skip

    def __str__(self) -> str:
        where = f"{self.form} form, optimization level {self.level!r}, target {self.target}"
        heading = f"{len(self.fused)} nodes become integer kernels, {len(self.missed)} fusions are missed ({where})"
        return "\n".join([heading, *map(str, self.missed)])


def lint(
    int8: Int8Model | IntegerProgram | str | os.PathLike[str], *, target: Target | str | None = None,
    form: FormName | None = None, level: Level = "all",
) -> Lint:  # fmt: skip
    """Predict which fusions onnxruntime misses, and why.

    int8: the converted model, or the path of its `.tq` or `.onnx` file.
    target: as if it had been planned for this one, by default its own. form: of the ONNX file, by default "qdq" or the file's.
    level: the optimization level at which it will run.
    Raises `ArgumentError` for an unknown target or the form "openvino", which onnxruntime does not fuse.

    >>> import torch, truequant as tq
    >>> qat = tq.prepare(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid()), torch.zeros(2, 4))
    >>> int8 = tq.convert(tq.calibrate(qat, [torch.ones(2, 4)]).eval())
    >>> found = tq.lint(int8)
    >>> found.fused
    {'0': 'QGemm'}
    >>> print(found.of("table")[0])
    '1': GatherElements, because sigmoid is a table of codes, a pass of its own; a relu or relu6 is part of the kernel before it
    """
    program, stored = _program(int8)
    layout = form or stored
    if layout == "openvino":
        raise ArgumentError("lint: onnxruntime fuses nothing in OpenVINO's form", got=layout, expected="'qdq' or 'qoperator'")
    if isinstance(target, str) and target not in TARGETS:
        raise ArgumentError(f"no target {target!r}", got=repr(target), expected=", ".join(TARGETS))
    if target is not None:
        program = replace(program, target=target if isinstance(target, str) else target.name)
    setting = _Setting(program, layout, level)
    fused: dict[str, str] = {}
    missed: list[Miss] = []
    for node in program.nodes:
        found = [miss for rule in _RULES for miss in rule(setting, node)]
        missed += found
        kernel = kernels_of(node).integer
        if kernel and not any(miss.kind in ("level", "wide", "pairs", "values") for miss in found):
            fused[node.output] = kernels_of(node).op if setting.pooled(node) else kernel
    return Lint(fused, tuple(missed), layout, level, program.target)


def _program(int8: Any) -> tuple[IntegerProgram, FormName]:
    if isinstance(int8, (str, os.PathLike)):
        if Path(int8).suffix.lower() == ".onnx":
            return read_program(int8)
        return load(int8).program, "qdq"
    return program_of(int8), "qdq"


@dataclass(frozen=True, slots=True)
class _Setting:
    program: IntegerProgram
    layout: Layout
    level: Level

    @property
    def fuses(self) -> bool:
        """Whether the optimization level looks for Quantize and Dequantize around an op."""
        return self.level in ("extended", "all")

    def written(self, node: Node) -> bool:
        """Whether a node lies in the file as Quantize and Dequantize around a float op."""
        if not isinstance(node, COMPUTING) or node.output not in self.program.edges:
            return False
        signed = self.program.edges[node.output].signed and runs_here(self.program)
        return self.layout == "qdq" and not signed and not self.paired(node) and not self.pooled(node)

    def pooled(self, node: Node) -> MaxPool | None:
        """The pooling that takes a convolution's sums as they are."""
        return pooling_of(self.program, node, self.layout) if isinstance(node, Conv) else None

    def paired(self, node: Node) -> bool:
        """Whether a node ships as a table of all pairs."""
        return isinstance(node, (Add, Mul, Sub)) and not proven(self.program, node, self.layout)


Rule = Callable[[_Setting, Node], Iterator[Miss]]


def _wide(setting: _Setting, node: Node) -> Iterator[Miss]:
    kernels = kernels_of(node)
    if kernels.wide_as_values and is_wide(node, setting.program.edges):
        sums = ", never EXACT" if node.sums else ""
        yield Miss(
            node.output, "wide", f"{kernels.op} in float32{sums}", "no integer kernel has codes of 16 bits",
            "8 bits for what it reads and writes",
        )  # fmt: skip


def _level(setting: _Setting, node: Node) -> Iterator[Miss]:
    if setting.fuses or not setting.written(node) or is_wide(node, setting.program.edges):
        return
    yield Miss(
        node.output, "level", f"{kernels_of(node).op} in float32", f"optimization level {setting.level!r} fuses no QDQ",
        "level='all', or form='qoperator'",
    )  # fmt: skip


def _pairs(setting: _Setting, node: Node) -> Iterator[Miss]:
    if not isinstance(node, (Add, Mul, Sub)) or not setting.paired(node):
        return
    why = "no integer kernel subtracts"
    if not isinstance(node, Sub):
        kernel, edges = kernels_of(node).integer, setting.program.edges
        grids = [f"({edges[n].scale:.6g}, {edges[n].zero_point})" for n in (node.left, node.right, node.output)]
        why = f"{kernel} gives other codes for some pairs of the grids {grids[0]}, {grids[1]} -> {grids[2]}"
    yield Miss(
        node.output, "pairs", f"{kernels_of(node).table} over all pairs of codes", why,
        "a + (-b) with b's sign in the weights before it" if isinstance(node, Sub) else "power-of-two scales, or other ranges",
    )  # fmt: skip


def _table(setting: _Setting, node: Node) -> Iterator[Miss]:
    if not isinstance(node, Table):
        return
    if node.function == "requantize":
        why, fix = f"'{node.input}' lies on another grid than its reader's", "one scheme and one range for both"
    else:
        why = f"{node.function} is a table of codes, a pass of its own"
        fix = "a relu or relu6 is part of the kernel before it"
    kernel = float_kernel_of(setting.program, node) if runs_here(setting.program) else None
    runs = kernels_of(node).table if kernel is None else f"{kernel.op} between quantizers"
    yield Miss(node.output, "table", runs, why, fix)


def _clamp(setting: _Setting, node: Node) -> Iterator[Miss]:
    edge = setting.program.edges.get(node.output)
    if edge is None:
        return
    if isinstance(node, Quantize):
        low, high = edge.qmin, edge.qmax
    elif isinstance(node, (*COMPUTING, Normalize, Clamp)) and not setting.paired(node):
        clamped: Any = node
        low, high = clamped.low, clamped.high
    else:
        return
    whole = limits_of(edge)
    if (low, high) == whole and not isinstance(node, Clamp):
        return
    narrow = (edge.qmin, edge.qmax) != whole and (low, high) == (edge.qmin, edge.qmax)
    why = f"the clamp to codes {low} … {high} is not the kernel's own, {whole[0]} … {whole[1]}"
    fix = "unsigned codes of 8 bits" if narrow else "a grid of its own behind a relu has zero point 0, which is the clamp"
    yield Miss((setting.pooled(node) or node).output, "clamp", "Clip on codes", why, fix)


def _weights(setting: _Setting, node: Node) -> Iterator[Miss]:
    if isinstance(node, (Conv, Linear)) and saturates(setting.program, node) and not setting.pooled(node):
        yield Miss(
            node.output, "weights", "unsigned weights, at half the speed where VNNI is",
            "pairs of signed ones could saturate on CPUs without VNNI",
            "preset 'int8', or target 'onnxruntime-vnni' for CPUs with VNNI only",
        )  # fmt: skip


def _packed(setting: _Setting, node: Node) -> Iterator[Miss]:
    if setting.level == "none" and isinstance(node, (Conv, Linear)) and packs(node.weight) and not setting.pooled(node):
        yield Miss(
            node.output, "packed", "Cast of its weights at each call", "level 'none' does not fold what unpacks 4-bit weights",
            "level='basic' or more",
        )  # fmt: skip


def _values(setting: _Setting, node: Node) -> Iterator[Miss]:
    edges = setting.program.edges
    behind = setting.program.readers(node.output)
    if behind and all(reader.rounds_once for reader in behind):
        return
    if isinstance(node, (Conv, Linear)) and node.output not in edges and not is_wide(node, edges):
        yield Miss(
            node.output, "values", f"{kernels_of(node).sums}, then Add, Cast and Mul", "its sums leave the program as floats",
            "QConfig(output=…) quantizes them in the kernel",
        )  # fmt: skip


def _float(setting: _Setting, node: Node) -> Iterator[Miss]:
    if isinstance(node, FLOATING):
        what = node.op.split(".")[0] if isinstance(node, Island) else type(node).__name__
        yield Miss(
            node.output, "float", f"{what} on floats", "the plan left it in float; print(tq.plan(…)) says why",
            "an op with an integer form, or fewer islands: what lies between two of them is quantized twice",
        )  # fmt: skip


_RULES: tuple[Rule, ...] = (_wide, _level, _pairs, _table, _clamp, _weights, _packed, _values, _float)
