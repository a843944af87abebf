from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.programs import U8, edge, random_codes, random_conv, random_linear, residual_net
from truequant.files import read_container
from truequant.integer import Int8Model, IntegerProgram, ProgramInput, load
from truequant.integer.nodes import (
    Clamp,
    Concat,
    Conv,
    Dequantize,
    GlobalAverage,
    Island,
    Linear,
    MaxPool,
    Mul,
    Node,
    Pad,
    Quantize,
    Reshape,
    Slice,
    Table,
    Transpose,
)
from truequant.integer.packing import narrowest, pack, packed_bytes, unpack


def everything(seed: int = 0) -> IntegerProgram:
    """A program with every kind of node, an input without a batch, and every form of output."""
    generator = torch.Generator().manual_seed(seed)
    net = residual_net(seed)
    same, table = edge(0.5, 3), torch.randint(0, 256, (256,), generator=generator).to(torch.int16)
    nodes: tuple[Node, ...] = (
        Quantize("z", "z.q"),
        Table("z.q", "t", table, "noise"),
        Mul("z.q", "t", "m", "portable", 1, 254),
        Clamp("m", "c", 2, 250),
        Transpose("c", "p", (0, 2, 1)),
        Slice("p", "s", 1, 0, None, 2),
        Pad("s", "w", ((1, 2),)),
        Concat(("w", "w"), "j", -1),
        MaxPool("j", "mp", (2,), (2,), (1,), (1,), True),
        Reshape("mp", "r", (0, -1)),
        random_linear(generator, "r", "l", 3, 24),
        random_conv(generator, "z.q", "d", (4, 1, 3), groups=4, padding=((2, 0),)),
        GlobalAverage("d", "g", (-1,), True, 0, 255),
        Dequantize("g", "g.v"),
        Island(
            ("l", "g.v"),
            "i",
            "add.Tensor",
            ('{"input":0}', '{"tensor":0}'),
            ('["alpha",2]',),
            (torch.tensor([0.5, -1.0, 2.0]),),
        ),
        Island(("i",), "soft", "softmax.int", ('{"input":0}', "-1"), (), ()),
    )
    outputs = {"dict": {"y": "y", "more": {"tuple": ["l", "g.v", "soft", None, 3, 2.5, True, ["z"]]}}}
    edges = dict(net.edges) | dict.fromkeys(("z.q", "t", "m", "c", "p", "s", "w", "j", "mp", "r", "d", "g"), same)
    return IntegerProgram(
        (*net.inputs, ProgramInput("z", "float32", (2, 4, 5), "zed")), (*net.nodes, *nodes), edges, outputs, "onnxruntime"
    )


def same(a: Node, b: Node) -> bool:
    if type(a) is not type(b):
        return False
    for field in fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, Tensor):
            if left.dtype != right.dtype or not torch.equal(left, right):
                return False
        elif field.name == "tensors":
            if len(left) != len(right) or not all(map(torch.equal, left, right)):
                return False
        elif left != right or type(left) is not type(right):
            return False
    return True


def test_a_file_holds_the_whole_program(tmp_path: Path) -> None:
    program, path = everything(), tmp_path / "model.tq"
    assert Int8Model(program).save(path) == path.stat().st_size == Int8Model(program).size_bytes
    loaded = load(path).program
    assert (loaded.inputs, loaded.target, loaded.outputs) == (program.inputs, program.target, program.outputs)
    assert dict(loaded.edges) == dict(program.edges)
    assert len(loaded.nodes) == len(program.nodes)
    assert all(same(a, b) for a, b in zip(loaded.nodes, program.nodes, strict=True))
    x, z = torch.randn(3, 2, 8, 8), torch.randn(2, 4, 5)
    got, wanted = load(path).codes(x, zed=z), Int8Model(program).codes(x, zed=z)
    assert list(got) == list(wanted)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_every_tensor_of_a_node_moves_to_a_device() -> None:
    for node in everything().nodes:
        moved = node.to(torch.device("meta"))
        held = [getattr(moved, field.name) for field in fields(moved)]
        items = [item for value in held for item in (value if isinstance(value, tuple) else (value,))]
        devices = {item.device.type for item in items if isinstance(item, Tensor)}
        assert devices == ({"meta"} if moved is not node else set()), node.label


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    first, second, third = tmp_path / "a.tq", tmp_path / "folder" / "b.tq", tmp_path / "c.tq"
    second.parent.mkdir()
    Int8Model(everything()).save(first)
    model = Int8Model(everything())
    # Edges in another order, tensors that share or do not share memory: the same program.
    edges = dict(reversed(model.program.edges.items()))
    Int8Model(replace(model.program, edges=edges)).save(second)
    load(first).save(third)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    Int8Model(everything(seed=1)).save(third)
    assert first.read_bytes() != third.read_bytes()


def test_a_layer_called_twice_is_stored_once(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    one = random_linear(generator, "x", "a", 64, 64)
    again = Linear("a", "b", one.weight.clone(), one.weight_scale, one.bias, 0, 255)
    inputs = (ProgramInput("v", "float32", (None, 64)),)
    edges = dict.fromkeys("xab", edge(0.5, 3))
    once = IntegerProgram(
        inputs, (Quantize("v", "x"), one, Dequantize("a", "y")), {k: edges[k] for k in "xa"}, "y", "onnxruntime"
    )
    twice = IntegerProgram(inputs, (Quantize("v", "x"), one, again, Dequantize("b", "y")), edges, "y", "onnxruntime")
    assert Int8Model(twice).size_bytes - Int8Model(once).size_bytes < 500
    Int8Model(twice).save(tmp_path / "m.tq")
    x = torch.randn(5, 64)
    assert torch.equal(load(tmp_path / "m.tq")(x), Int8Model(twice)(x))
    assert sorted(read_container(tmp_path / "m.tq")[1]) == ["a.bias", "a.weight", "a.weight_scale"]


@pytest.mark.parametrize(("bits", "codes"), [(2, (-2, 1)), (4, (-3, 3)), (4, (-8, 7))])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 4, 1, 3)])
def test_small_codes_are_packed(bits: int, codes: tuple[int, int], shape: tuple[int, ...]) -> None:
    tensor = random_codes(shape, edge(codes=codes), torch.Generator().manual_seed(0)).to(torch.int8)
    data = pack(tensor, bits)
    assert data.dtype == torch.uint8
    assert data.shape == (packed_bytes(shape, bits),)
    assert torch.equal(unpack(data, bits, shape), tensor)


def test_the_width_follows_from_the_codes() -> None:
    for codes, bits in (
        ([-1, 1], 1),
        ([1, -1, 0], 2),
        ([1], 2),
        ([0], 2),
        ([-2, 1], 2),
        ([2], 4),
        ([-8, 7], 4),
        ([8], 8),
        ([-9], 8),
    ):
        assert narrowest(torch.tensor(codes, dtype=torch.int8)) == bits


def test_every_code_of_every_width_comes_back() -> None:
    for bits, low, high in ((1, -1, 1), (2, -2, 1), (4, -8, 7)):
        codes = torch.arange(low, high + 1, 2 if bits == 1 else 1).to(torch.int8).repeat(3)
        assert torch.equal(unpack(pack(codes, bits), bits, tuple(codes.shape)), codes)
    assert pack(torch.tensor([1, -1, -1, 1, 1, 1, 1, 1, -1], dtype=torch.int8), 1).tolist() == [0b11111001, 0]
    assert pack(torch.tensor([1, -2, 0, -1, 1], dtype=torch.int8), 2).tolist() == [0b11001001, 1]


@pytest.mark.parametrize(("codes", "ratio"), [((-7, 7), 0.5), ((-1, 1), 0.25)])
def test_low_bits_make_small_files(codes: tuple[int, int], ratio: float, tmp_path: Path) -> None:
    weight = random_codes((64, 64, 3, 3), edge(codes=codes), torch.Generator().manual_seed(0)).to(torch.int8)
    fields = (torch.ones(64), torch.zeros(64, dtype=torch.int32), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, *U8)
    nodes = (Quantize("v", "x"), Conv("x", "y", weight, *fields), Dequantize("y", "out"))
    edges = {"x": edge(1.0, 3), "y": edge(90.0, 100)}
    model = Int8Model(IntegerProgram((ProgramInput("v", "float32", (None, 64, 4, 4)),), nodes, edges, "out", "onnxruntime"))
    assert model.save(tmp_path / "m.tq") < weight.numel() * ratio + 2500
    loaded = load(tmp_path / "m.tq")
    assert torch.equal(loaded.program.nodes[1].weight, weight)  # type: ignore[union-attr]
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(loaded(x), model(x))


def test_nothing_of_the_machine_is_in_the_file(tmp_path: Path) -> None:
    Int8Model(residual_net()).save(tmp_path / "model.tq")
    content = (tmp_path / "model.tq").read_bytes()
    assert str(tmp_path).encode() not in content
    header, _ = read_container(tmp_path / "model.tq")
    assert sorted(header) == ["edges", "format", "inputs", "nodes", "outputs", "sha256", "target", "version"]
