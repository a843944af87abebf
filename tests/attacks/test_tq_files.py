"""model.tq files that lie: a container in good order whose program is not. Each gives FileError, none half a model."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.programs import residual_net
from tests.unit.integer.test_serialize import everything
from truequant.errors import FileError, TruequantError
from truequant.files import write_container
from truequant.integer import Int8Model, load, program_shapes
from truequant.integer.serialize import MAX_NODES, digest, from_container, to_container

Header = dict[str, Any]
Change = Callable[[Header, dict[str, Tensor]], object]


@pytest.fixture(scope="module")
def honest() -> tuple[Header, dict[str, Tensor]]:
    header, tensors = to_container(everything())
    return header, tensors


def node(header: Header, name: str) -> Header:
    return next(entry for entry in header["nodes"] if entry["output"] == name)


def put(*path: object) -> Change:
    """Replace what lies at the path; its last item is the new value."""
    *keys, last, value = path

    def change(header: Header, tensors: dict[str, Tensor]) -> None:
        at: Any = header
        for key in keys:
            at = node(header, key[1:]) if isinstance(key, str) and key.startswith("@") else at[key]
        at[last] = value

    return change


def drop(*path: object) -> Change:
    *keys, last = path

    def change(header: Header, tensors: dict[str, Tensor]) -> None:
        at: Any = header
        for key in keys:
            at = node(header, key[1:]) if isinstance(key, str) and key.startswith("@") else at[key]
        del at[last]

    return change


def tensor(name: str, function: Callable[[Tensor], Tensor]) -> Change:
    return lambda header, tensors: tensors.update({name: function(tensors[name])})


def sealed(header: Header, tensors: dict[str, Tensor]) -> Header:
    return header | {"sha256": digest(header, tensors)}


LIES: dict[str, tuple[Change, str]] = {
    "no format": (drop("format"), "no integer program\n  got:      None\n  expected: 'truequant integer program'"),
    "a checkpoint": (put("format", "truequant checkpoint"), "no integer program\n  got:      'truequant checkpoint'"),
    "a later version": (put("version", 2), "a version that this truequant does not read\n  got:      2\n  expected: 1"),
    "a huge version": (put("version", 10**4000), "a version that this truequant does not read"),
    "no nodes": (drop("nodes"), "not these fields\n  got:      missing ['nodes'], unknown []"),
    "more fields": (put("code", "import os"), "not these fields\n  got:      missing [], unknown ['code']"),
    "nodes in an object": (put("nodes", {}), "'nodes' cannot be\n  got:      {}\n  expected: an array"),
    "edges in an array": (put("edges", []), "'edges' cannot be\n  got:      []\n  expected: an object"),
    "a target of numbers": (put("target", 3), "'target' cannot be\n  got:      3\n  expected: 1 to 512 characters"),
    "an unknown node": (
        put("nodes", 0, "node", "Exec"),
        "'nodes[0].node' cannot be\n  got:      'Exec'\n  expected: one of Quantize",
    ),
    "a node without kind": (drop("nodes", 0, "node"), "'nodes[0].node' cannot be\n  got:      None"),
    "a node of text": (put("nodes", 0, "Conv"), "'nodes[0].node' cannot be"),
    "a node of too many": (
        put("nodes", 0, "axis", 1),
        "'nodes[0]': not these fields\n  got:      missing [], unknown ['axis']",
    ),
    "a node of too few": (drop("@stem", "groups"), "not these fields\n  got:      missing ['groups'], unknown []"),
    "a fractional size": (put("@stem", "groups", 1.0), ".groups' cannot be\n  got:      1.0\n  expected: int"),
    "a true size": (put("@stem", "groups", True), ".groups' cannot be\n  got:      True\n  expected: int"),
    "a name of nothing": (put("@stem", "input", ""), ".input' cannot be\n  got:      ''\n  expected: 1 to 512 characters"),
    "a long name": (put("@stem", "output", "x" * 600), ".output' cannot be"),
    "strides in text": (put("@stem", "stride", "11"), ".stride' cannot be\n  got:      '11'\n  expected: an array"),
    "a stride of text": (put("@stem", "stride", [1, "1"]), ".stride[1]' cannot be"),
    "three-sided padding": (
        put("@stem", "padding", [[0, 0, 0], [0, 0]]),
        ".padding[0]' cannot be\n  got:      [0, 0, 0]\n  expected: 2 items",
    ),
    "an unknown rule": (
        put("@sum1", "rule", "exact"),
        ".rule' cannot be\n  got:      'exact'\n  expected: one of 'onnxruntime', 'portable'",
    ),
    "ceil of 1": (put("@pool", "ceil_mode", 1), ".ceil_mode' cannot be\n  got:      1\n  expected: bool"),
    "a weight by value": (
        put("@stem", "weight", [1, 2]),
        ".weight' cannot be\n  got:      [1, 2]\n  expected: {'tensor': name}",
    ),
    "a weight from a file": (put("@stem", "weight", {"path": "/etc/passwd"}), ".weight' cannot be"),
    "a tensor that is not there": (put("@stem", "weight", "tensor", "ghost"), ".weight.tensor' cannot be\n  got:      'ghost'"),
    "a tensor left over": (lambda h, t: t.update(ghost=torch.ones(1)), "tensors that no node names\n  got:      ghost"),
    "a float weight": (tensor("stem.weight", Tensor.float), "Conv 'stem': weight has a wrong dtype"),
    "a wide weight": (tensor("stem.weight", Tensor.short), "Conv 'stem': weight has a wrong dtype"),
    "a flat weight": (tensor("stem.weight", lambda w: w.flatten(2)), "disagree about the number of spatial axes"),
    "a larger weight": (tensor("a1.weight", lambda w: w.repeat(1, 2, 1, 1)), "Conv 'a1' cannot read its input"),
    "a wide bias": (tensor("stem.bias", Tensor.long), "Conv 'stem': bias has a wrong dtype"),
    "a short bias": (tensor("stem.bias", lambda b: b[1:]), "Conv 'stem': bias of a wrong shape"),
    "a NaN scale": (tensor("stem.weight_scale", lambda s: s * math.nan), "Conv 'stem': weight_scale cannot be"),
    "a negative scale": (tensor("stem.weight_scale", torch.neg), "Conv 'stem': weight_scale cannot be"),
    "a zero scale": (tensor("stem.weight_scale", torch.zeros_like), "Conv 'stem': weight_scale cannot be"),
    "a double scale": (tensor("stem.weight_scale", Tensor.double), "weight_scale has a wrong dtype"),
    "entries of float": (tensor("t.entries", Tensor.float), "Table 't': entries has a wrong dtype"),
    "entries too large": (tensor("t.entries", lambda t: t + 256), "Table 't': entries outside the output's codes"),
    "entries too few": (tensor("t.entries", lambda t: t[:17]), "Table 't': entries of a wrong shape"),
    "an edge's zero scale": (put("edges", "stem", "scale", 0.0), "edge 'stem': a scale that cannot be"),
    "an edge's whole scale": (
        put("edges", "stem", "scale", 1),
        "'edges.stem.scale' cannot be\n  got:      1\n  expected: float",
    ),
    "an edge's double scale": (put("edges", "stem", "scale", 0.1), "edge 'stem': a scale that cannot be\n  got:      0.1"),
    "an edge's tiny scale": (put("edges", "stem", "scale", 1e-42), "edge 'stem': a scale that cannot be"),
    "an edge's huge scale": (put("edges", "stem", "scale", 1e39), "edge 'stem': a scale that cannot be"),
    "a zero point outside": (put("edges", "stem", "zero_point", 256), "edge 'stem': real 0 has no code"),
    "codes turned round": (put("edges", "stem", "qmin", 300), "edge 'stem': impossible codes"),
    "more codes": (put("edges", "stem", "qmax", 2**40), "edge 'stem': impossible codes"),
    "an edge missing": (drop("edges", "stem"), "Conv 'a1' reads 'stem'\n  expected: an edge of codes"),
    "an edge that nobody writes": (
        put("edges", "ghost", {"scale": 1.0, "zero_point": 0, "qmin": 0, "qmax": 1}),
        "edge 'ghost' is written by no node",
    ),
    "clamped outside": (put("@stem", "high", 256), "Conv 'stem': clamped to codes that its edge lacks"),
    "a changed meaning": (put("@pool", "input", "mean"), "'mean' before anything wrote it"),
    "a loop": (put("@stem", "input", "y.q"), "Conv 'stem' reads 'y.q' before anything wrote it"),
    "a name twice": (put("@a1", "output", "stem"), "writes a name that exists already"),
    "an axis too many": (put("@s", "axis", 7), "Slice 's' cannot read its input"),
    "another permutation": (put("@p", "permutation", [0, 1, 1]), "Transpose 'p': not a permutation"),
    "another shape": (put("@r", "shape", [0, 7]), "Reshape 'r' cannot read its input"),
    "groups": (put("@stem", "groups", 3), "Conv 'stem': 4 channels do not make 3 groups"),
    "no stride": (put("@stem", "stride", [0, 0]), "Conv 'stem': stride out of range"),
    "endless padding": (put("@w", "padding", [[0, 2**62]]), "Pad 'w': padding out of range"),
    "padding without end": (put("@w", "padding", [[2**31 - 1] * 2] * 3), "is too large"),
    "a window without end": (put("@mp", "kernel", [2**31 - 1]), "MaxPool 'mp': a window too large"),
    "another op": (put("@soft", "op", "as_strided.default"), "Island 'soft': no such op\n  got:      as_strided.default"),
    "an argument of code": (put("@soft", "arguments", 1, "__import__('os')"), "Island 'soft': an argument that is no JSON"),
    "an argument astray": (put("@soft", "arguments", 0, '{"input":1}'), "Island 'soft': an argument that points nowhere"),
    "a softmax over text": (put("@soft", "arguments", 1, '"x"'), "Island 'soft': softmax.int cannot compute this"),
    "an island's tensor": (tensor("i.tensors.0", lambda t: t.repeat(2)), "Island 'i': add.Tensor cannot compute this"),
    "an unknown dtype": (put("inputs", 0, "dtype", "object"), "input 'x': no such dtype\n  got:      'object'"),
    "a size of text": (put("inputs", 0, "shape", [None, "2", 8, 8]), "'inputs[0].shape[1]' cannot be"),
    "a negative size": (put("inputs", 0, "shape", [None, 2, -8, 8]), "input 'x': impossible sizes"),
    "an input twice": (put("inputs", 1, "name", "x"), "input 'x' is not a value of its own"),
    "a keyword twice": (put("inputs", 0, "keyword", "zed"), "a keyword stands for two inputs\n  got:      ['zed', 'zed']"),
    "an output of codes": (put("outputs", "stem"), "output 'stem' is not a value of the program"),
    "an output that is not there": (put("outputs", ["ghost"]), "output 'ghost' is not a value of the program"),
    "an output of two kinds": (put("outputs", {"tuple": [], "dict": {}}), "'outputs' cannot be"),
    "an output of no kind": (put("outputs", {"set": ["y"]}), "'outputs' cannot be"),
    "a tuple of a dict": (put("outputs", {"tuple": {"a": "y"}}), "'outputs' cannot be"),
}


def refuse(header: Header, tensors: dict[str, Tensor], line: str, path: Path) -> None:
    """Whoever lies can compute a digest: only what the file says gives it away."""
    write_container(path, sealed(header, tensors), tensors)
    with pytest.raises(FileError) as caught:
        load(path)
    assert line in str(caught.value)
    assert str(caught.value).startswith(f"'{path}': ")


@pytest.mark.parametrize("lie", LIES)
def test_a_program_that_lies(lie: str, honest: tuple[Header, dict[str, Tensor]], tmp_path: Path) -> None:
    header, tensors = copy.deepcopy(honest)
    change, line = LIES[lie]
    change(header, tensors)
    refuse(header, tensors, line, tmp_path / "model.tq")


def test_too_many_nodes(honest: tuple[Header, dict[str, Tensor]]) -> None:
    header = honest[0] | {"nodes": [None] * (MAX_NODES + 1)}
    with pytest.raises(FileError, match=f"too many nodes\n  got:      {MAX_NODES + 1}"):
        from_container(sealed(header, honest[1]), honest[1], "'x'")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put("@l", "weight", "bits", 3), "1, 2 or 4 bits"),
        (put("@l", "weight", "bits", True), "1, 2 or 4 bits"),
        (put("@l", "weight", "bits", 1), ".weight' cannot be\n  got:      'torch.uint8 (36,)'\n  expected: uint8 (9,)"),
        (put("@l", "weight", "shape", [3, 25]), "expected: uint8 (38,)"),
        (put("@l", "weight", "shape", [-3, -24]), "sizes that are not negative"),
        (put("@l", "weight", "shape", [2**62, 2**62]), "expected: uint8 ("),
        (tensor("l.weight", Tensor.float), "'torch.float32 (36,)'"),
        (tensor("l.weight", lambda t: t[1:]), "'torch.uint8 (35,)'"),
        (put("@l", "weight", "signed", True), "expected: {'tensor': name}"),
    ],
)
def test_packed_weights_that_lie(change: Change, line: str, tmp_path: Path) -> None:
    program = everything()
    linear = next(n for n in program.nodes if n.output == "l")
    linear.weight.remainder_(8)  # type: ignore[union-attr]
    header, tensors = copy.deepcopy(to_container(program))
    assert node(header, "l")["weight"] == {"tensor": "l.weight", "bits": 4, "shape": [3, 24]}
    change(header, tensors)
    refuse(header, tensors, line, tmp_path / "model.tq")


def test_bits_behind_the_last_code(tmp_path: Path) -> None:
    program = everything()
    conv = next(n for n in program.nodes if n.output == "d")
    conv.weight.zero_()  # type: ignore[union-attr]
    conv.bias.zero_()  # type: ignore[union-attr]
    header, tensors = copy.deepcopy(to_container(program))
    entry = node(header, "d")["weight"]
    assert entry == {"tensor": "d.weight", "bits": 2, "shape": [4, 1, 3]}
    entry["shape"] = [11]
    tensors["d.weight"][-1] = 192
    refuse(header, tensors, "bits behind the last of 11 codes", tmp_path / "model.tq")


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a header, inner ones too."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


HOSTILE = (None, -1, 0, 3, 2**31 - 1, 2**70, 0.5, "x", "stem", [], [1], {}, True)


def test_any_value_of_the_header_replaced_by_any_other() -> None:
    """FileError, or a program that runs or refuses by name: never another exception, never a crash."""
    header, tensors = to_container(everything())
    x, z = torch.zeros(1, 2, 8, 8), torch.zeros(2, 4, 5)
    survivors = 0
    hostile = itertools.cycle(HOSTILE)
    for path in list(leaves(header)):
        for value in itertools.islice(hostile, 3):
            changed = copy.deepcopy(header)
            put(*path, value)(changed, {})
            if changed == header:
                continue
            try:
                model = Int8Model(from_container(sealed(changed, tensors), tensors, "'x'"))
            except FileError:
                continue
            survivors += 1
            shapes = program_shapes(model.program, {"x": (1, 2, 8, 8), "z": (2, 4, 5)})
            if max(map(math.prod, shapes.values())) > 2**20:  # a large model is not a lie
                continue
            try:
                model(x, zed=z)
            except TruequantError:
                continue
    assert survivors > 0  # names, clamps and scales may be others


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.tq"
    model = Int8Model(residual_net())
    model.save(path)
    whole, written = path.read_bytes(), to_container(model.program)[0]
    for position in range(0, len(whole), 5):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            loaded = load(path)
        except FileError:
            continue
        # The last digit of a scale can be another and the number the same.
        assert to_container(loaded.program)[0] == written
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileError, match="damaged: its contents are not those that were written"):
        load(path)


def test_a_digest_of_another_kind(honest: tuple[Header, dict[str, Tensor]], tmp_path: Path) -> None:
    for wrong in (None, 3, "", "0" * 64, []):
        write_container(tmp_path / "model.tq", honest[0] | {"sha256": wrong}, honest[1])
        with pytest.raises(FileError, match="damaged"):
            load(tmp_path / "model.tq")
