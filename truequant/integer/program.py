"""`IntegerProgram`: a model as a list of integer nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch

from truequant.errors import ConversionError
from truequant.integer.edge import Edge, check_edge
from truequant.integer.nodes import Node
from truequant.integer.nodes.checks import MAX_SIZE
from truequant.planning import is_tree, names_in

_DTYPES = ("float32", "float16", "bfloat16", "float64", "bool", "uint8", "int8", "int16", "int32", "int64")
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _DTYPES}
"""What a program's input may be, by name."""


@dataclass(frozen=True, slots=True)
class ProgramInput:
    """A tensor that the model takes: its value's name, dtype (a torch name such as "float32"), shape with None where it is
    dynamic (the batch, by default), and the keyword under which it is passed (None: by position).
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    keyword: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class IntegerProgram:
    """Nodes in order of execution, single assignment: each name is written once, before it is read.

    edges: every name that holds codes. All other names are values (float32).
    outputs: what the model returns: a tree of values' names (see `truequant.planning.structures`).
    target: the name of the target whose rules the nodes follow.
    call: how the model is called, a tree of the inputs' names (see `truequant.planning.calls`); None where each input is an
        argument of its own.
    """

    inputs: tuple[ProgramInput, ...]
    nodes: tuple[Node, ...]
    edges: Mapping[str, Edge]
    outputs: Any
    target: str
    call: Any = None

    def __post_init__(self) -> None:
        validate(self)

    def output_names(self) -> tuple[str, ...]:
        """Names in `outputs`, in order."""
        return tuple(names_in(self.outputs))

    def readers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a name, in order."""
        return tuple(node for node in self.nodes if name in node.reads)

    def census(self) -> dict[str, int]:
        """How many nodes of each kind."""
        return dict(sorted(Counter(type(node).__name__ for node in self.nodes).items()))


def validate(program: IntegerProgram) -> None:
    """Raise `ConversionError` at the first input, edge or node that cannot be run."""
    known = _check_inputs(program)
    for name, edge in program.edges.items():
        check_edge(name, edge)
    for node in program.nodes:
        _check_reads(node, program.edges, known)
        _check_output(node, program.edges, known)
        node.check(program.edges)
        known.add(node.output)
    for name in program.edges:
        if name not in known:
            raise ConversionError(f"edge '{name}' is written by no node")
    if program.call is not None:
        _check_call(program)
    for name in program.output_names():
        if name not in known or name in program.edges:
            raise ConversionError(f"output '{name}' is not a value of the program")


def _check_inputs(program: IntegerProgram) -> set[str]:
    """Their names: each a value of its own, of a known dtype and possible sizes."""
    known: set[str] = set()
    for tensor in program.inputs:
        if tensor.dtype not in DTYPES:
            raise ConversionError(f"input '{tensor.name}': no such dtype", got=repr(tensor.dtype), expected=", ".join(DTYPES))
        if tensor.name in known or tensor.name in program.edges:
            raise ConversionError(
                f"input '{tensor.name}' is not a value of its own", expected="one name for each input, and no edge"
            )
        if not all(size is None or 0 <= size <= MAX_SIZE for size in tensor.shape):
            raise ConversionError(
                f"input '{tensor.name}': impossible sizes", got=tensor.shape, expected=f"None, or 0 … {MAX_SIZE}"
            )
        known.add(tensor.name)
    keywords = [tensor.keyword for tensor in program.inputs if tensor.keyword is not None]
    if len(set(keywords)) != len(keywords):
        raise ConversionError("a keyword stands for two inputs", got=sorted(keywords), expected="each keyword once")
    return known


def _check_reads(node: Node, edges: Mapping[str, Edge], known: Set[str]) -> None:
    """A node reads what is written before it: codes or values, as its kind does."""
    reads_values = node.reading == "values" or (node.reading == "either" and node.output not in edges)
    for name in node.reads:
        if name not in known:
            raise ConversionError(f"{node.label} reads '{name}' before anything wrote it")
        if (name in edges) == reads_values:
            raise ConversionError(f"{node.label} reads '{name}'", expected="a value" if reads_values else "an edge of codes")


def _check_output(node: Node, edges: Mapping[str, Edge], known: Set[str]) -> None:
    """A node writes one new name: codes or a value, as its kind does."""
    if node.output in known:
        raise ConversionError(f"{node.label} writes a name that exists already")
    if node.output not in edges and node.writing == "codes":
        raise ConversionError(f"{node.label} writes no edge", expected="scale and zero point of its codes")
    if node.output in edges and node.writing == "values":
        raise ConversionError(f"{node.label} writes a value, which has no codes")


def _check_call(program: IntegerProgram) -> None:
    """A tree of four parts, whose first two name each input once."""
    call = program.call
    parts = dict(call["items"]) if is_tree(call) and isinstance(call, dict) and "items" in call else {}
    kinds = {"args": list, "kwargs": dict, "parameters": list, "defaults": dict}
    fits = list(parts) == list(kinds) and all(isinstance(parts[name], kind) for name, kind in kinds.items())
    fits = fits and all("items" in parts[name] for name in ("kwargs", "defaults"))
    fits = fits and all(isinstance(p, dict) and list(p) == ["text"] for p in parts["parameters"])
    fits = fits and not list(names_in(parts["defaults"]))
    if not fits or sorted(names_in([parts["args"], parts["kwargs"]])) != sorted(tensor.name for tensor in program.inputs):
        raise ConversionError("the program's call is none of its inputs", got=repr(call)[:80], expected="each input once")
