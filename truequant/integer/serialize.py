"""A program as a JSON header and named tensors, and back. Reading trusts nothing.

    {"format": "truequant integer program", "version": 1, "sha256": …, "target": …, "inputs": [{…}], "edges": {NAME: {…}},
     "nodes": [{"node": "Conv", "input": …, "weight": {"tensor": NAME}, …}], "outputs": …}

`sha256` is the digest of everything else, so that a damaged weight is not mistaken for another model.

A field that is a tensor is `{"tensor": NAME}`, or `{"tensor": NAME, "bits": 4, "shape": […]}` for int8 codes that fit 1, 2 or 4
bits (see `packing`; 3-bit codes take 4). Equal tensors are stored once. The fields are those of the dataclasses in
`nodes`, so that a new kind of node needs no code here.
"""

from __future__ import annotations

import hashlib
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from truequant.errors import ConversionError, FileError
from truequant.files import dumps
from truequant.integer.edge import Edge
from truequant.integer.nodes import NODE_TYPES, Node
from truequant.integer.packing import narrowest, pack, packed_bytes, unpack
from truequant.integer.program import IntegerProgram, ProgramInput
from truequant.integer.shapes import program_shapes
from truequant.planning import is_tree

FORMAT, VERSION = "truequant integer program", 1
MAX_NODES = 100_000
_KINDS: dict[str, type[Node]] = {kind.__name__: kind for kind in NODE_TYPES}
_SECTIONS = ("edges", "format", "inputs", "nodes", "outputs", "sha256", "target", "version")
T = TypeVar("T")


def _fields(kind: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass and their types, in their order."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


_HINTS = {kind: _fields(kind) for kind in (*NODE_TYPES, Edge, ProgramInput)}
_LATER = {kind: {field.name for field in fields(kind) if field.default is not MISSING} for kind in _HINTS}
"""Fields with a default, which files that were written before they were may leave out."""


def to_container(program: IntegerProgram) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Header and tensors. Equal programs give equal results, whichever tensors they share in memory."""
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[object, ...], str] = {}

    def encode(value: object, name: str) -> object:
        if isinstance(value, Tensor):
            return _store(value.detach().cpu().contiguous(), name, tensors, names)
        return [encode(item, f"{name}.{i}") for i, item in enumerate(value)] if isinstance(value, tuple) else value

    def record(value: object, name: str) -> dict[str, object]:
        return {field: encode(getattr(value, field), f"{name}.{field}") for field in _HINTS[type(value)]}

    header: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "target": program.target,
        "inputs": [record(tensor, tensor.name) for tensor in program.inputs],
        "edges": {name: record(edge, name) for name, edge in program.edges.items()},
        "nodes": [{"node": type(node).__name__} | record(node, node.output) for node in program.nodes],
        "outputs": program.outputs,
    }
    if program.call is not None:
        header["call"] = program.call
    return header | {"sha256": digest(header, tensors)}, tensors


def digest(header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a header without its own digest, and of all tensors: names, dtypes, shapes, values."""
    content = hashlib.sha256(dumps({key: value for key, value in header.items() if key != "sha256"}).encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        content.update(dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def from_container(header: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> IntegerProgram:
    """The program of a header and tensors that anybody may have written; FileError says what is wrong, and `where`."""
    if header.get("format") != FORMAT:
        raise FileError(f"{where}: no integer program", got=repr(header.get("format"))[:80], expected=repr(FORMAT))
    if header.get("version") != VERSION:
        raise FileError(
            f"{where}: a version that this truequant does not read",
            got=repr(header.get("version"))[:80],
            expected=VERSION,
            fix="read it with the truequant that wrote it",
        )
    _check_keys(header, tuple(sorted((*_SECTIONS, *({"call"} & set(header))))), where)
    if header["sha256"] != digest(header, tensors):
        raise FileError(f"{where}: damaged: its contents are not those that were written", fix="copy or write the file again")
    reader = _Reader(tensors, where)
    nodes = reader.sequence(header["nodes"], "nodes")
    if len(nodes) > MAX_NODES:
        raise FileError(f"{where}: too many nodes", got=len(nodes), expected=f"at most {MAX_NODES}")
    edges = header["edges"]
    if not isinstance(edges, dict):
        raise reader.wrong("edges", edges, "an object")
    if not is_tree(header["outputs"]):
        raise reader.wrong("outputs", header["outputs"], "a tree of names (see truequant.planning.structures)")
    try:
        program = IntegerProgram(
            inputs=tuple(
                reader.record(ProgramInput, item, f"inputs[{index}]")
                for index, item in enumerate(reader.sequence(header["inputs"], "inputs"))
            ),
            nodes=tuple(reader.node(item, f"nodes[{index}]") for index, item in enumerate(nodes)),
            edges={name: reader.record(Edge, edge, f"edges.{name}") for name, edge in edges.items()},
            outputs=header["outputs"],
            target=reader.value(str, header["target"], "target"),
            call=header.get("call"),
        )
        _check_shapes(program)
    except ConversionError as error:
        raise FileError(f"{where}: {error.what}", got=error.got, expected=error.expected) from error
    if unused := sorted(set(tensors) - reader.used):
        raise FileError(f"{where}: tensors that no node names", got=", ".join(unused[:4])[:200])
    return program


def _store(tensor: Tensor, name: str, tensors: dict[str, Tensor], names: dict[tuple[object, ...], str]) -> dict[str, object]:
    shape, bits = list(tensor.shape), narrowest(tensor) if tensor.dtype == torch.int8 else 8
    if bits < 8:
        tensor = pack(tensor, bits)
    content = (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
    stored = names.setdefault(content, name)
    tensors.setdefault(stored, tensor)
    return {"tensor": stored} if bits == 8 else {"tensor": stored, "bits": bits, "shape": shape}


class _Reader:
    """Turns JSON into typed values, remembering which tensors were read."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where, self.used = tensors, where, set[str]()

    def wrong(self, at: str, got: object, expected: object) -> FileError:
        return FileError(f"{self.where}: '{at[:200]}' cannot be", got=repr(got)[:80], expected=expected)

    def sequence(self, value: object, at: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.wrong(at, value, "an array")
        return value

    def node(self, value: object, at: str) -> Node:
        kind = value.get("node") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(kind, str) or kind not in _KINDS:
            raise self.wrong(f"{at}.node", kind, f"one of {', '.join(_KINDS)}")
        return self.record(_KINDS[kind], {key: item for key, item in value.items() if key != "node"}, at)

    def record(self, kind: type[T], value: object, at: str) -> T:
        if not isinstance(value, dict):
            raise self.wrong(at, value, "an object")
        hints = {name: hint for name, hint in _HINTS[kind].items() if name in value or name not in _LATER[kind]}
        _check_keys(value, tuple(sorted(hints)), f"{self.where}: '{at[:200]}'")
        return kind(**{field: self.value(hint, value[field], f"{at}.{field}") for field, hint in hints.items()})

    def value(self, hint: Any, value: Any, at: str) -> Any:
        origin, args = get_origin(hint), get_args(hint)
        if hint is Tensor:
            return self.tensor(value, at)
        if origin is tuple:
            items = self.sequence(value, at)
            if args[-1] is not Ellipsis and len(items) != len(args):
                raise self.wrong(at, value, f"{len(args)} items")
            return tuple(self.value(args[0], item, f"{at}[{index}]") for index, item in enumerate(items))
        if origin is types.UnionType:
            return None if value is None else self.value(args[0], value, at)
        if origin is Literal:
            if value not in args:
                raise self.wrong(at, value, f"one of {', '.join(map(repr, args))}")
            return value
        if type(value) is not hint or (hint is str and not 0 < len(value) <= 512):
            raise self.wrong(at, value, "1 to 512 characters" if hint is str else hint.__name__)
        return value

    def tensor(self, value: object, at: str) -> Tensor:
        if not isinstance(value, dict) or sorted(value) not in (["tensor"], ["bits", "shape", "tensor"]):
            raise self.wrong(at, value, "{'tensor': name}")
        name = self.value(str, value["tensor"], f"{at}.tensor")
        if name not in self.tensors:
            raise self.wrong(f"{at}.tensor", name, "the name of a tensor in the file")
        self.used.add(name)
        stored = self.tensors[name]
        if "bits" not in value:
            return stored
        bits, shape = value["bits"], self.value(tuple[int, ...], value["shape"], f"{at}.shape")
        if type(bits) is not int or bits not in (1, 2, 4) or any(size < 0 for size in shape):
            raise self.wrong(at, value, "1, 2 or 4 bits and sizes that are not negative")
        if stored.dtype != torch.uint8 or tuple(stored.shape) != (packed_bytes(shape, bits),):
            raise self.wrong(at, f"{stored.dtype} {tuple(stored.shape)}", f"uint8 ({packed_bytes(shape, bits)},)")
        codes = unpack(stored, bits, shape)
        if not torch.equal(pack(codes, bits), stored):
            raise self.wrong(at, f"bits behind the last of {math.prod(shape)} codes", "zeros")
        return codes


def _check_keys(value: Mapping[str, object], expected: tuple[str, ...], where: str) -> None:
    if sorted(value) != list(expected):
        missing, extra = sorted(set(expected) - set(value)), sorted(set(value) - set(expected))
        raise FileError(
            f"{where}: not these fields", got=f"missing {missing}, unknown {extra[:8]}"[:300], expected=", ".join(expected)
        )


def _check_shapes(program: IntegerProgram) -> None:
    """Run the shapes for a batch of two, where nothing else is left open."""
    shapes = {}
    for tensor in program.inputs:
        if any(size is None for size in tensor.shape[1:]):
            return
        shapes[tensor.name] = tuple(2 if size is None else size for size in tensor.shape)
    program_shapes(program, shapes)
