from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.programs import edge, random_linear, residual_net
from truequant.errors import ArgumentError, ArgumentTypeError
from truequant.integer import Int8Model, IntegerProgram, ProgramInput
from truequant.integer.nodes import Add, Conv, Dequantize, Linear, Quantize


@pytest.fixture
def int8() -> Int8Model:
    return Int8Model(residual_net())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 2, 8, 8, generator=torch.Generator().manual_seed(2))


def two_inputs(outputs: object, keyword: str | None = "other") -> IntegerProgram:
    """`a + b` and a linear layer of the sum that returns sums as values."""
    inputs = (ProgramInput("a", "float32", (None, 3)), ProgramInput("b", "float32", (1, 3), keyword))
    nodes = (
        Quantize("a", "a.q"),
        Quantize("b", "b.q"),
        Add("a.q", "b.q", "sum.q", "onnxruntime", 0, 255),
        Dequantize("sum.q", "sum"),
        random_linear(torch.Generator().manual_seed(0), "sum.q", "logits", 2, 3),
    )
    edges = {"a.q": edge(0.5, 128), "b.q": edge(0.5, 128), "sum.q": edge(0.5, 128)}
    return IntegerProgram(inputs, nodes, edges, outputs, "onnxruntime")


def test_it_is_called_like_its_model(int8: Int8Model, x: Tensor) -> None:
    y = int8(x.requires_grad_())
    assert y.shape == (7, 5)
    assert y.dtype == torch.float32
    assert not y.requires_grad
    assert not int8.training
    assert torch.equal(int8.eval()(x), y)
    assert list(int8.named_parameters()) == []


def test_any_batch_size_gives_the_same_codes(int8: Int8Model, x: Tensor) -> None:
    whole = int8.codes(x)
    assert list(whole) == list(int8.program.edges)
    for name, codes in whole.items():
        pieces = [int8.codes(x[i : i + size])[name] for i, size in ((0, 1), (1, 4), (5, 2), (7, 0))]
        assert torch.equal(torch.cat(pieces), codes)
        assert codes.dtype == torch.uint8


@pytest.mark.alone
def test_repeats_and_threads_give_the_same_codes(int8: Int8Model, x: Tensor) -> None:
    y = int8(x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert all(torch.equal(int8(x), y) for _ in range(3))
    finally:
        torch.set_num_threads(threads)


def test_the_codes_explain_the_output(int8: Int8Model, x: Tensor) -> None:
    last = int8.program.edges["y.q"]
    assert torch.equal(int8(x), (int8.codes(x)["y.q"].float() - last.zero_point) * last.scale)


def test_one_weight_changes_the_output(int8: Int8Model, x: Tensor) -> None:
    before = int8.codes(x)
    layer = next(node for node in int8.program.nodes if isinstance(node, Conv))
    layer.weight[0, 0, 1, 1] ^= 64
    after = int8.codes(x)
    assert not torch.equal(before["stem"], after["stem"])
    assert not torch.equal(before["y.q"], after["y.q"])


def test_no_float_weights(int8: Int8Model) -> None:
    layers = [node for node in int8.program.nodes if isinstance(node, (Conv, Linear))]
    assert all(node.weight.dtype == torch.int8 and node.bias.dtype == torch.int32 for node in layers)
    floats = [t for node in layers for t in (node.weight, node.bias, node.weight_scale) if t.is_floating_point()]
    assert sum(t.numel() for t in floats) == sum(node.weight.shape[0] for node in layers)


def test_ops_and_size(int8: Int8Model) -> None:
    assert int8.ops() == {
        "Add": 2, "Conv": 6, "Dequantize": 1, "GlobalAverage": 1, "Linear": 1, "MaxPool": 1, "Quantize": 1
    }  # fmt: skip
    assert int8.size_bytes == int8.size_bytes > sum(n.weight.numel() for n in int8.program.nodes if isinstance(n, Conv))


@pytest.mark.parametrize("change", ["half", "double", "bfloat16"])
def test_precision_cannot_be_changed(int8: Int8Model, x: Tensor, change: str) -> None:
    y = int8(x)
    assert torch.equal(getattr(int8, change)()(x), y)
    assert torch.equal(int8.to("cpu")(x), y)
    assert torch.equal(int8.to(torch.float16)(x), y)


def test_copies_pickles_and_state_dicts(int8: Int8Model, x: Tensor) -> None:
    y = int8(x)
    assert torch.equal(copy.deepcopy(int8)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(int8))(x), y)
    buffer = io.BytesIO()
    torch.save(int8.state_dict(), buffer)
    buffer.seek(0)
    other = Int8Model(residual_net(seed=9))
    assert not torch.equal(other(x), y)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), y)


def test_it_is_a_module_among_modules(int8: Int8Model, x: Tensor) -> None:
    net = torch.nn.Sequential(torch.nn.Identity(), int8, torch.nn.Softmax(1))
    assert torch.equal(net(x), int8(x).softmax(1))
    assert "1._extra_state" in net.state_dict()


def test_structured_outputs_and_keywords() -> None:
    tree = {"dict": {"both": {"tuple": ["sum", ["logits", None, 2.5]]}, "sum": "sum"}}
    model = Int8Model(two_inputs(tree))
    a, b = torch.randn(4, 3), torch.randn(1, 3)
    got = model(a, other=b)
    assert sorted(got) == ["both", "sum"]
    total, (logits, nothing, number) = got["both"]
    assert isinstance(got["both"], tuple)
    assert torch.equal(total, got["sum"])
    assert logits.shape == (4, 2)
    assert nothing is None
    assert number == 2.5
    assert torch.equal(model.codes(a, other=b)["sum.q"], Int8Model(two_inputs("sum", None)).codes(a, b)["sum.q"])
    assert Int8Model(two_inputs({"tuple": ["logits"]}, None))(a, b)[0].shape == (4, 2)
    assert torch.equal(Int8Model(two_inputs(["a"], None))(a, b)[0], a)


WRONG: dict[str, tuple[tuple[object, ...], dict[str, object], type[Exception], str]] = {
    "nothing": ((), {}, ArgumentError, "with other inputs than it was converted with\n  got:      0 positional, keywords []"),
    "one": ((torch.ones(2, 3),), {}, ArgumentError, "expected: (float32[*, 3], other=float32[1, 3])"),
    "both by position": ((torch.ones(2, 3), torch.ones(1, 3)), {}, ArgumentError, "got:      2 positional, keywords []"),
    "an unknown keyword": ((torch.ones(2, 3),), {"mask": torch.ones(1, 3)}, ArgumentError, "1 positional, keywords ['mask']"),
    "a list": (([[1.0] * 3],), {"other": torch.ones(1, 3)}, ArgumentTypeError, "input 'a' is not a tensor\n  got:      list"),
    "a module": ((torch.ones(2, 3),), {"other": torch.nn.Identity()}, ArgumentTypeError, "input 'b' is not a tensor"),
    "double": (
        (torch.ones(2, 3).double(),), {"other": torch.ones(1, 3)}, ArgumentError,
        "input 'a' has a wrong dtype\n  got:      torch.float64\n  expected: torch.float32\n  fix:      x.to(torch.float32)",
    ),
    "a wrong size": (
        (torch.ones(2, 4),), {"other": torch.ones(1, 3)}, ArgumentError,
        "input 'a' has a wrong shape\n  got:      (2, 4)\n  expected: float32[*, 3]",
    ),
    "too few axes": ((torch.ones(3),), {"other": torch.ones(1, 3)}, ArgumentError, "got:      (3,)"),
    "a fixed batch": ((torch.ones(2, 3),), {"other": torch.ones(2, 3)}, ArgumentError, "expected: float32[1, 3]"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("call", ["__call__", "codes"])
def test_wrong_inputs_are_named(case: str, call: str) -> None:
    args, kwargs, kind, line = WRONG[case]
    with pytest.raises(kind) as caught:
        getattr(Int8Model(two_inputs("sum")), call)(*args, **kwargs)
    assert line in str(caught.value)


def test_a_free_size_that_a_later_node_cannot_take() -> None:
    model = residual_net()
    free = replace(model, inputs=(ProgramInput("x", "float32", (None, None, None, None)),))
    with pytest.raises(ArgumentError) as caught:
        Int8Model(free)(torch.zeros(1, 3, 8, 8))
    assert str(caught.value) == (
        "the model cannot compute inputs of these shapes: Conv 'stem' cannot read its input\n"
        "  got:      shape (1, 3, 8, 8); inputs 'x' (1, 3, 8, 8)\n"
        "  expected: 4 axes, 2 channels on axis 1"
    )
    assert Int8Model(free)(torch.zeros(1, 2, 12, 10)).shape == (1, 5)


def test_only_a_program_makes_a_model() -> None:
    with pytest.raises(ArgumentTypeError, match="Int8Model holds an integer program"):
        Int8Model(torch.nn.Identity())  # type: ignore[arg-type]


def test_it_prints_as_a_table() -> None:
    assert repr(Int8Model(two_inputs("sum"))) == (
        "Int8Model(float32[*, 3], other=float32[1, 3]) for onnxruntime: 6 int8 weights, 2 int32 biases\n"
        "1 Add, 1 Dequantize, 1 Linear, 2 Quantize\n"
        "node        output  codes    scale  zero point  weight\n"
        "Quantize    a.q     0…255    0.5    128\n"
        "Quantize    b.q     0…255    0.5    128\n"
        "Add         sum.q   0…255    0.5    128\n"
        "Dequantize  sum     float32\n"
        "Linear      logits  float32                     2×3"
    )
