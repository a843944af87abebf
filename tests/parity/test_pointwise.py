"""Ops that round each number alone, and biases of scores: evaluation, program, oracle and onnxruntime give the same codes."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.interpret import interpret
from tests.parity.test_constants import FORMS, LEVELS
from tests.parity.trained import trained_on
from truequant.errors import ConversionError
from truequant.integer import IntegerProgram, ProgramInput
from truequant.integer.nodes import Attend, Constant, Dequantize, Edge, MatMul, Pointwise, Quantize
from truequant.planning import Plan
from truequant.runtimes import EdgeReader, onnx_bytes
from truequant.runtimes.onnxruntime.census import census

LENGTH, WIDTH, HEADS = 6, 16, 2


class Attention(nn.Module):
    """Heads of queries, keys and values, with a head behind them. Kinds change what happens to scores and queries."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out, self.last = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def heads(self, x: Tensor) -> list[Tensor]:
        shape = (x.shape[0], x.shape[1], HEADS, WIDTH // HEADS)
        return [layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attend(*self.heads(self.norm(x))).transpose(1, 2).flatten(2)
        z: Tensor = self.last(self.out(y) + x)
        return z


def tables(features: int, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(length).float(), 10.0 ** -torch.linspace(0, 1, features // 2))
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Rotary(Attention):
    """As Llama and Qwen rotate queries and keys."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, table in zip(("cos", "sin"), tables(8), strict=True):
            self.register_buffer(name, table)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(rotated(q, self.cos, self.sin), rotated(k, self.cos, self.sin), v)


class Partly(Rotary):
    """As GPT-NeoX does: one layer for all three, of whose features the first are rotated, in pairs of neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(WIDTH, 3 * WIDTH)
        del self.q, self.k, self.v

    def heads(self, x: Tensor) -> list[Tensor]:
        return list(self.all(x).view(*x.shape[:2], HEADS, 24).transpose(1, 2).chunk(3, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)

    def turned(self, x: Tensor) -> Tensor:
        turned, kept = x[..., :4], x[..., 4:]
        neighbours = torch.stack([-turned[..., 1::2], turned[..., ::2]], -1).flatten(-2)
        return torch.cat([turned * self.cos[:, :4] + neighbours * self.sin[:, :4], kept], -1)


class Cached(Partly):
    """As Phi-3 does: keys and values stand behind those of a cache, which begins empty, a tensor of one axis."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (torch.cat([torch.tensor([]), new], -2) for new in (self.turned(k), v))
        return F.scaled_dot_product_attention(self.turned(q), keys, values)


class Relative(Attention):
    """As Swin does: a learned table of positions, looked up, and a mask of -100 for what lies in another window."""

    index: Tensor
    apart: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * LENGTH - 1, HEADS))
        places = torch.arange(LENGTH)
        self.register_buffer("index", places[:, None] - places[None] + LENGTH - 1)
        self.register_buffer("apart", torch.zeros(LENGTH, LENGTH).index_fill(1, torch.tensor([5]), -100.0))

    def bias(self) -> Tensor:
        return self.table[self.index.reshape(-1)].reshape(LENGTH, LENGTH, HEADS).permute(2, 0, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q * (WIDTH // HEADS) ** -0.5 @ k.transpose(-2, -1) + self.bias()
        scores = scores.view(-1, 1, HEADS, LENGTH, LENGTH) + self.apart
        return scores.view(-1, HEADS, LENGTH, LENGTH).softmax(-1) @ v


class InOneCall(Relative):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias().unsqueeze(0) + self.apart)


class Buckets(Attention):
    """As T5 does: scores without a scale, a bias by distance, and places that the input hides, both in one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.distances = nn.Embedding(LENGTH, HEADS)

    def added(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[-2])
        bias: Tensor = self.distances((places[:, None] - places).abs()).permute(2, 0, 1)
        hidden = x[:, 0, :, 0] > 0.3
        return bias + torch.where(hidden[:, None, None], torch.finfo(torch.float32).min, 0.0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1)
        scores += self.added(q)
        return F.softmax(scores, -1) @ v


class BucketsInOneCall(Buckets):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, self.added(q), scale=1.0)


class Alibi(Attention):
    """Slopes times distances, and minus infinity for what comes later."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = torch.arange(LENGTH)
        bias = (places - places[:, None]) * torch.tensor([0.5, 0.25])[:, None, None]
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(8) + bias
        return scores.masked_fill(torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), -math.inf).softmax(-1) @ v


class Tokens(nn.Module):
    """A learned token before patches, learned positions, a map for each place and one for each channel of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.last = nn.Conv2d(3, WIDTH, 4, 4), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 17, WIDTH))
        self.places, self.gain = nn.Parameter(torch.rand(17, WIDTH)), nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        x = x + (x + self.norm(x) * self.places) * self.gain
        y: Tensor = self.last(x)
        return y


KINDS: list[type[nn.Module]] = [Rotary, Partly, Relative, InOneCall, Buckets, BucketsInOneCall, Alibi, Tokens]
POINTWISE = {Rotary: 8, Partly: 8, Relative: 2, InOneCall: 1, Buckets: 1, BucketsInOneCall: 1, Alibi: 2, Tokens: 3}


def example(model: nn.Module, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn((batch, 3, 16, 16) if isinstance(model, Tokens) else (batch, LENGTH, WIDTH), generator=generator)


def trained(kind: type[nn.Module], config: tq.QConfig | str | None = None) -> nn.Module:
    return trained_on(kind, example, config)


def agrees(qat: nn.Module, x: Tensor, ways: list[tuple[Any, Any]]) -> IntegerProgram:
    int8 = tq.convert(qat)
    codes = int8.codes(x)
    with torch.no_grad():
        assert torch.equal(qat(x), int8(x))
    by_oracle = interpret(int8.program, {int8.program.inputs[0].name: x}) if "Island" not in int8.program.census() else codes
    for name, want in codes.items():
        assert torch.equal(want.long(), torch.as_tensor(by_oracle[name]).long()), name
    for form, level in ways:
        shipped = EdgeReader(int8.program, form=form, level=level).codes(x)
        for name, want in codes.items():
            assert torch.equal(want.int(), shipped[name].int()), (form, level, name)
    return int8.program


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_equal_everywhere(kind: type[nn.Module]) -> None:
    qat = trained(kind)
    plan = qat.binding.plan
    masks = ("gt", "where_int", "getitem_int", "add") if issubclass(kind, Buckets) else ()
    assert {s.op for s in plan.in_float()} <= set(masks)
    program = agrees(qat, example(qat, 2), [(form, level) for form in FORMS for level in LEVELS])
    assert sum(isinstance(node, Pointwise) for node in program.nodes) == POINTWISE[kind]
    report = tq.verify(qat, tq.convert(qat), [example(qat, 5)], runtimes=("onnxruntime",))
    assert report.codes_compared > 0
    assert report.runtimes["onnxruntime"].codes_different == 0


@pytest.mark.parametrize("preset", ["w8a8-pow2", "w4a4"])
@pytest.mark.parametrize("kind", [Partly, Relative, BucketsInOneCall, Tokens])
def test_other_presets(kind: type[nn.Module], preset: str) -> None:
    qat = trained(kind, preset)
    agrees(qat, example(qat, 1), [("qdq", "all"), ("qoperator", "basic")])


def test_nothing_is_fused() -> None:
    """No optimizer joins a product and a sum, which would round once."""
    for kind in (Rotary, Tokens):
        program = tq.convert(trained(kind)).program
        counts = [census(onnx_bytes(program, form="qoperator"), level) for level in LEVELS]
        for op in ("Mul", "Add", "Neg"):
            assert len({count.get(op, 0) for count in counts}) == 1, (op, counts)


def test_the_bias_and_the_tables_learn() -> None:
    """Their gradients are those of the float model, on the same values: nothing of theirs is rounded in training."""
    for kind, names in ((InOneCall, ["table"]), (Tokens, ["cls", "pos", "places", "gain"])):
        torch.manual_seed(0)
        model = kind()
        qat = tq.prepare(model, example(model)).train()
        x = example(model)
        with tq.quantizers_off(qat):
            qat(x).sum().backward()
        model(x).sum().backward()
        for name in names:
            wanted, have = model.get_parameter(name).grad, qat.get_parameter(name).grad
            assert wanted is not None
            assert have is not None
            assert torch.allclose(wanted, have, rtol=1e-4, atol=1e-5), name
        qat.zero_grad()
        qat(x).sum().backward()
        assert all((qat.get_parameter(name).grad != 0).any() for name in names)  # type: ignore[union-attr]


def test_a_new_table_is_used_at_once() -> None:
    qat = trained(Relative)
    x = example(qat)
    before = qat(x)
    with torch.no_grad():
        qat.get_parameter("table").mul_(-1)
    assert not torch.equal(qat(x), before)
    agrees(qat, x, [("qdq", "all")])


def test_a_bias_that_hides_places_is_a_mask_too() -> None:
    for kind in (Buckets, BucketsInOneCall):
        qat = trained(kind)
        int8 = tq.convert(qat)
        (attend,) = (node for node in int8.program.nodes if isinstance(node, Attend))
        (mask,) = attend.masks
        assert set(int8.codes(example(qat, 4))[mask].unique().tolist()) == {0, 255}


# -- plan --------------------------------------------------------------------------------------------------------------
def test_the_plan_says_so() -> None:
    plan = tq.plan(Rotary(), example(Rotary()))
    assert "a float32 operation for each number" in str(plan)
    assert plan.site("q").emits is None, "queries are quantized once, behind their rotation"
    kinds = Counter(q.kind for q in plan.quantizers if q.owner == "" and q.slot.startswith("add_"))
    assert kinds == {"activation": 3}
    plan = tq.plan(Partly(), example(Partly()))
    assert plan.site("all").emits is None
    assert (plan.site("chunk_0").part, plan.site("chunk_0").quantizer) == (2, "chunk_0")
    plan = tq.plan(Relative(), example(Relative()))
    assert [(s.name, s.bias) for s in plan.sites if s.action == "biased"] == [("add_1", "finite")]
    assert [q.kind for q in plan.quantizers if q.name == plan.site("add_1").emits] == ["scores"]
    assert plan.site("matmul_0").emits is None
    assert Plan.from_json(plan.to_json()) == plan


def test_rules_win() -> None:
    x, wide = example(Rotary()), tq.QuantScheme(tq.types.uint8)
    plan = tq.plan(Rotary(), x, tq.QConfig(rules=(tq.Rule("q", output=wide),)))
    assert plan.site("q").emits is not None
    assert plan.site("k").emits is None
    plan = tq.plan(Rotary(), x, tq.QConfig(rules=(tq.Rule("mul_0", None),)))
    assert [s.name for s in plan.in_float()] == ["mul_0"]
    plan = tq.plan(Relative(), x, tq.QConfig(rules=(tq.Rule(torch.softmax, None),)))
    assert [s.op for s in plan.in_float()] == ["softmax"]
    plan = tq.plan(Rotary(), x, tq.QConfig(activation=None, input=None, output=None))
    assert "pointwise" not in {s.action for s in plan.sites}, "behind layers of floats all of it is float"


# -- nodes -------------------------------------------------------------------------------------------------------------
def test_a_file_holds_them(tmp_path: Path) -> None:
    qat = trained(Tokens)
    int8, x = tq.convert(qat), example(qat)
    int8.save(tmp_path / "model.tq")
    again = tq.load(tmp_path / "model.tq")
    assert torch.equal(int8(x), again(x))
    assert int8.ops() == again.ops()


def of(*nodes: Any) -> IntegerProgram:
    return IntegerProgram((ProgramInput("x", "float32", (None, 2)),), nodes, {}, "y", "onnxruntime")


def test_nodes_that_cannot_be() -> None:
    with pytest.raises(ConversionError, match="Pointwise 'y': no such operation"):
        of(Pointwise("pow", ("x", "x"), "y"))  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match="Pointwise 'y': neg of 2 values"):
        of(Pointwise("neg", ("x", "x"), "y"))
    with pytest.raises(ConversionError, match="Constant 'c': codes has a wrong dtype"):
        of(Constant("c", torch.zeros(1, 2, dtype=torch.uint8)), Pointwise("add", ("x", "c"), "y"))
    with pytest.raises(ConversionError, match="Constant 'c': values that are not finite"):
        of(Constant("c", torch.full((1, 2), math.inf)), Pointwise("add", ("x", "c"), "y"))
    grid = Edge(2.0**-64, 0, 0, 255)
    with pytest.raises(ConversionError, match="MatMul 'y': scales too far apart"):
        IntegerProgram(
            (ProgramInput("x", "float32", (None, 2, 2)),), (Quantize("x", "q"), MatMul("q", "q", "y", 0, 0)), {"q": grid}, "y",
            "onnxruntime",
        )  # fmt: skip
    assert of(Pointwise("div", ("x", "x"), "y")).nodes[0].output_shape([(3, 1), (1, 2)]) == (3, 2)
    assert Dequantize("a", "b").rounds_once is False


def test_an_empty_cache_is_left_out() -> None:
    qat = trained(Cached)
    int8, plain = tq.convert(qat), tq.convert(trained(Partly))
    assert int8.ops() == plain.ops()
    tq.assert_exact(qat, int8, [example(qat)], runtimes=("reference", "onnxruntime"))
