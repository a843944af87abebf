"""Constants that an op joins to an activation: evaluation, the program, the oracle and onnxruntime compute the same codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.interpret import interpret
from tests.parity.trained import trained_on
from truequant.errors import ConversionError, FileError
from truequant.integer import IntegerProgram, ProgramInput
from truequant.integer.nodes import Constant, Dequantize, Edge, Quantize
from truequant.planning import Plan
from truequant.runtimes import EdgeReader
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnxruntime.session import Level

FORMS: tuple[Layout, ...] = ("qdq", "qoperator")
LEVELS: tuple[Level, ...] = ("none", "basic", "extended", "all")


class Tokens(nn.Module):
    """Patches behind a token that stays as it is, with positions that are learned."""

    cls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.head = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, 5)
        self.register_buffer("cls", torch.randn(1, 1, 16))
        self.pos = nn.Parameter(torch.randn(1, 17, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        y: Tensor = self.head(F.relu(x))
        return y


class Words(nn.Module):
    """Words, positions and kinds of tokens, as encoders of text sum them."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.kind, self.place = nn.Embedding(40, 16), nn.Embedding(2, 16), nn.Embedding(32, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        kinds = torch.zeros(ids.shape, dtype=torch.long, device=ids.device)
        x = self.word(ids) + self.kind(kinds)
        x = x + self.place(torch.arange(ids.shape[1], device=ids.device))
        y: Tensor = self.head(self.norm(x))
        return y


class Several(nn.Module):
    """Constants on either side of a difference, of a buffer, of a larger rank, stacked, and made in the forward."""

    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)
        self.register_buffer("kept", torch.randn(3, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = self.kept[0] - y
        y = y - torch.linspace(-2, 1, 30).reshape(5, 6)
        y = torch.cat([y, self.kept[1].expand(y.shape[0], -1, -1), self.kept[:1].repeat(y.shape[0], 1, 1)], 1)
        z: Tensor = self.last(y)
        return z


def example(model: nn.Module, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    if isinstance(model, Words):
        return torch.randint(0, 40, (batch, 9), generator=generator)
    return torch.randn((batch, 3, 16, 16) if isinstance(model, Tokens) else (batch, 5, 6), generator=generator)


def trained(kind: type[nn.Module], config: tq.QConfig | str | None = None) -> nn.Module:
    return trained_on(kind, example, config)


@pytest.mark.parametrize("preset", ["int8", "w8a8", "w8a8-pow2", "w4a4"])
@pytest.mark.parametrize("kind", [Tokens, Words, Several])
def test_codes_are_equal_everywhere(kind: type[nn.Module], preset: str) -> None:
    qat = trained(kind, preset)
    int8 = tq.convert(qat)
    assert not tq.plan(kind(), example(qat), preset).in_float()
    assert "Island" not in int8.program.census()
    for batch in (1, 2):
        x = example(qat, batch)
        codes = int8.codes(x)
        with torch.no_grad():
            assert torch.equal(qat(x), int8(x))
        for form in FORMS:
            for level in LEVELS:
                shipped = EdgeReader(int8.program, form=form, level=level).codes(x)
                for name, want in codes.items():
                    assert torch.equal(want.int(), shipped[name].int()), (form, level, name)
    by_oracle = interpret(int8.program, {int8.program.inputs[0].name: x})
    for name, want in codes.items():
        assert torch.equal(want.long(), torch.from_numpy(by_oracle[name]).long()), name


def test_every_edge_of_evaluation() -> None:
    for kind in (Tokens, Words, Several):
        qat = trained(kind)
        report = tq.verify(qat, tq.convert(qat), [example(qat)], runtimes=("onnxruntime",))
        assert report.codes_compared > 0
        assert report.runtimes["onnxruntime"].codes_different == 0


def test_gradients_are_those_of_a_fake_quantizer() -> None:
    """Of a constant, straight through where it is within its range; written once more with torch's own function."""
    qat = trained(Tokens).train()
    site = next(s for s in tq.plan(Tokens(), example(qat)).sites if s.name == "add_0")
    assert site.constants == (1,)
    found = [m for n, m in qat.named_modules() if n.endswith("add_0_constant")]
    (grid,) = found
    with torch.no_grad():
        qat.get_parameter("pos")[0, 0, :4] = torch.tensor([50.0, -50.0, 0.1, -0.1])  # two leave the range of the last step
    tq.freeze(qat)
    qat.zero_grad()
    qat(example(qat)).sum().backward()
    have = qat.get_parameter("pos").grad
    assert have is not None
    low, high = ((q - float(grid.zero_point)) * float(grid.scale) for q in (grid.scheme.qmin, grid.scheme.qmax))
    pos = qat.get_parameter("pos").detach()
    outside = (pos < low - float(grid.scale)) | (pos > high + float(grid.scale))
    assert outside[0, 0, :2].all()
    assert (have[outside] == 0).all()
    assert (have[~outside] != 0).any()


# -- plan --------------------------------------------------------------------------------------------------------------
def test_the_plan_says_so() -> None:
    plan = tq.plan(Words(), example(Words()))
    text = str(plan)
    assert "integer add of a constant" in text
    assert [q.name for q in plan.quantizers if q.kind == "constant"] == ["add_0_constant", "add_1_constant"]
    assert str(plan.quantizer("add_0_constant").scheme.dtype) == "uint16", "the sums of an embedding are not rounded each time"
    plan = tq.plan(Tokens(), example(Tokens()))
    assert "one grid for all parts, a constant among them" in str(plan)
    assert str(plan.quantizer("add_0_constant").scheme.dtype) == "uint8"
    assert Plan.from_json(plan.to_json()) == plan


def test_a_rule_leaves_it_in_float_or_chooses_its_bits() -> None:
    model, x = Tokens(), example(Tokens())
    plan = tq.plan(model, x, tq.QConfig(rules=(tq.Rule("add_0", None),)))
    assert [s.name for s in plan.in_float()] == ["add_0"]
    assert plan.site("add_0").constants == ()
    assert not [q for q in plan.quantizers if q.kind == "constant"]
    wide = tq.QuantScheme(tq.types.uint16)
    plan = tq.plan(model, x, tq.QConfig(rules=(tq.Rule("cat_0", output=wide), tq.Rule("add_0", input=wide))))
    assert plan.quantizer("add_0_constant").scheme.dtype == tq.types.uint16


def test_masks_are_no_constants_of_a_grid() -> None:
    class Masked(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.patch(x).flatten(2).transpose(1, 2) + torch.full((16, 16), -1e9).triu(1))
            return y

    assert [s.name for s in tq.plan(Masked(), example(Masked())).in_float()] == ["add_0"]


def test_a_plan_whose_constants_contradict_it() -> None:
    plan = tq.plan(Tokens(), example(Tokens()))
    text = plan.to_json().replace('"constants":[1]', '"constants":[7]')
    assert text != plan.to_json()
    with pytest.raises(FileError, match="the site 'add_0' contradicts itself"):
        Plan.from_json(text)


# -- the node ----------------------------------------------------------------------------------------------------------
def test_a_file_holds_its_codes(tmp_path: Path) -> None:
    qat = trained(Tokens)
    int8, x = tq.convert(qat), example(qat)
    int8.save(tmp_path / "model.tq")
    again = tq.load(tmp_path / "model.tq")
    assert torch.equal(int8(x), again(x))
    stored = [n for n in again.program.nodes if isinstance(n, Constant)]
    assert [(n.codes.dtype, tuple(n.codes.shape), n.like is None) for n in stored] == [
        (torch.uint8, (1, 1, 16), False),
        (torch.uint8, (1, 17, 16), True),
    ]


def of_constant(codes: Tensor, like: str | None) -> IntegerProgram:
    grid = Edge(0.5, 0, 0, 255)
    return IntegerProgram(
        (ProgramInput("x.value", "float32", (None, 2)),),
        (Quantize("x.value", "x"), Constant("c", codes, like), Dequantize("c", "y")),
        {"x": grid, "c": grid}, "y", "onnxruntime",
    )  # fmt: skip


def test_codes_that_cannot_be() -> None:
    with pytest.raises(ConversionError, match="Constant 'c'"):
        of_constant(torch.zeros(1, 2, dtype=torch.int8), None)
    with pytest.raises(ConversionError, match="Constant 'c': it is repeated"):
        of_constant(torch.zeros(3, 2, dtype=torch.uint8), "x")
    assert of_constant(torch.zeros(1, 2, dtype=torch.uint8), "x").nodes[1].output_shape([(5, 2)]) == (5, 2)


def test_torch_export() -> None:
    qat = trained(Tokens)
    int8, x = tq.convert(qat), example(qat)
    program = tq.export_program(int8)
    assert (program.module()(x) - int8(x)).abs().max() <= 2 * int8(x).abs().max() / 255


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_training_gives_the_same_gradients() -> None:
    qat = trained(Tokens).train()
    tq.freeze(qat)
    x, gradients = example(qat), []
    for run in (qat, torch.compile(qat, fullgraph=True)):
        qat.zero_grad()
        run(x).square().sum().backward()
        gradients.append([qat.get_parameter(n).grad.clone() for n in ("pos", "patch.weight")])  # type: ignore[union-attr]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_sums_of_8_bits_by_rule_hold_in_openvino() -> None:
    """Whose form has no codes of 16 bits, which the sums of an embedding have by default."""
    narrow = tq.QuantScheme(tq.types.uint8)
    qat = trained(Words, tq.QConfig(rules=(tq.Rule(torch.add, input=narrow, output=narrow),)))
    assert {str(q.scheme.dtype) for q in qat.binding.plan.quantizers if q.kind == "constant"} == {"uint8"}
    report = tq.verify(qat, tq.convert(qat), [example(qat)], runtimes=("onnxruntime", "openvino"))
    assert [report.runtimes[name].codes_different for name in ("onnxruntime", "openvino")] == [0, 0]
