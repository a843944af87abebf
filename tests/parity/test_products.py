"""Products of two activations: exact sums in the oracle, in evaluation, in the program and in onnxruntime."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from tests.agreement import one
from tests.programs import edge, program, random_codes, values_of
from truequant.errors import ConversionError
from truequant.integer import Int8Model
from truequant.integer.nodes import MatMul
from truequant.planning.products import contraction
from truequant.runtimes import EdgeReader, census, onnx_bytes


def trained(model: nn.Module, x: Tensor, *, scale: float = 1.0) -> nn.Module:
    """Prepared, calibrated, with one training step behind it, in evaluation."""
    qat = tq.prepare(model, x)
    tq.calibrate(qat, [x])
    optimizer = torch.optim.SGD(qat.train().parameters(), 0.01)
    qat(x * scale).square().mean().backward()
    optimizer.step()
    return qat.eval()


@pytest.mark.parametrize(
    ("left", "right"), [((4, 6), (6, 3)), ((2, 4, 6), (2, 6, 5)), ((2, 1, 4, 6), (3, 6, 5)), ((2, 3, 1, 7), (1, 3, 7, 1)),
     ((0, 4, 6), (6, 3))]
)  # fmt: skip
def test_oracle(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    for a, b, y in (
        (edge(0.02, 128), edge(0.03, 7), edge(0.05, 100)),
        (edge(2**-6, 0), edge(2**-7, 255), edge(2**-5, 3)),  # ties
    ):
        node = MatMul("a", "b", "y", 2, 250)
        one(node, {"a": a, "b": b, "y": y}, a=random_codes(left, a, generator), b=random_codes(right, b, generator))


@pytest.mark.parametrize("ends", [False, True])
def test_onnxruntime(ends: bool) -> None:
    """Codes at their ends, where a kernel that saturates would show it."""
    generator = torch.Generator().manual_seed(1)
    a, b, y = edge(0.02, 0), edge(0.03, 255), edge(8.0, 250)
    p = program(MatMul("a", "b", "y", 0, 255), {"a": a, "b": b, "y": y}, "a", "b", rank=3)
    x, w = random_codes((2, 9, 200), a, generator), random_codes((2, 200, 17), b, generator)
    if ends:
        x, w = torch.full_like(x, 255), torch.zeros_like(w)
    inputs = values_of(x, a), values_of(w, b)
    found, shipped = Int8Model(p).codes(*inputs), EdgeReader(p).codes(*inputs)
    assert all(torch.equal(found[name].int(), shipped[name].int()) for name in found)
    assert census(onnx_bytes(p))["QLinearMatMul"] == 1


def test_sums_beyond_int32_are_refused() -> None:
    a, y = edge(0.02, 0), edge(8.0, 0)
    p = program(MatMul("a", "b", "y", 0, 255), {"a": a, "b": a, "y": y}, "a", "b", rank=2)
    with pytest.raises(ConversionError, match="may leave int32"):
        Int8Model(p)(torch.zeros(1, 40_000), torch.zeros(40_000, 1))


class Products(nn.Module):
    """Matmul in its spellings, einsum with transposed, joined and several axes, a tensor times itself."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.query(x), self.key(x), self.value(x)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(16)).softmax(-1)
        y = torch.bmm(weights, v)
        gram = torch.matmul(y.mT, y).relu()
        parts = v.unflatten(-1, (4, 4))
        a = torch.einsum("bth,bsh->bts", y, v)
        b = torch.einsum("bts, bshd -> bdth", a, parts)
        c = torch.einsum("bdth,bshd->bts", b, parts)
        return self.out(c.matmul(v)), gram, torch.einsum("bij,bkj", q, k).mean(1)


def test_every_product_of_a_model_is_integer_and_exact() -> None:
    x = torch.randn(3, 6, 16)
    qat = tq.prepare(Products(), x)
    sites = {s.name: s.action for s in tq.plan(Products(), x).sites}
    products = ["matmul_0", "matmul_1", "einsum_0", "einsum_1", "einsum_2", "matmul_2", "einsum_3"]
    assert [n for n, a in sites.items() if a == "product"] == products
    assert [n for n, a in sites.items() if a == "attend"] == ["bmm_0"]
    tq.calibrate(qat, [x])
    sum(o.square().mean() for o in qat.train()(x)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in qat.parameters())
    int8 = tq.convert(qat.eval())
    report = tq.verify(qat, int8, [torch.randn(5, 6, 16), torch.randn(1, 6, 16)])
    assert (int8.ops()["MatMul"], int8.ops()["Attend"]) == (7, 1)
    assert report.codes_different == report.outputs_different == 0


def test_a_product_learns_as_the_float_one_does() -> None:
    """Straight-through: with both operands and the result on their grids, the gradients are those of a plain product."""

    class Square(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x @ y

    x, y = torch.randint(-8, 9, (3, 4)) / 8, torch.randint(-8, 9, (4, 5)) / 8
    x[0, 0], x[0, 1], y[0, 0], y[0, 1] = -128 / 8, 127 / 8, -128 / 8, 127 / 8
    qat = tq.prepare(Square(), (x, y), tq.QConfig(output=None))
    tq.calibrate(qat, [(x, y)])
    tq.freeze(qat.train())
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    c, d = x.clone().requires_grad_(), y.clone().requires_grad_()
    g = torch.randn(3, 5)
    (qat(a, b) * g).sum().backward()
    ((c @ d) * g).sum().backward()
    assert torch.equal(a.grad, c.grad)
    assert torch.equal(b.grad, d.grad)


class Masked(nn.Module):
    """A causal mask of minus infinities, made from the sizes of the input."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(8, 8), value

    def forward(self, x: Tensor) -> Tensor:
        k = self.key(x)
        scores = k @ k.mT
        mask = torch.full_like(scores, self.value).triu(1)
        return (scores + mask).softmax(-1) @ k


@pytest.mark.parametrize("value", [-math.inf, torch.finfo(torch.float32).min, -1e4])
def test_masks_do_not_stretch_a_grid(value: float) -> None:
    x = torch.randn(4, 5, 8)
    model = Masked(value)
    decided = tq.plan(model, x)
    assert decided.site("add_0").action == "float"
    assert "mask" in decided.site("add_0").reason
    qat = trained(model, x)
    assert (qat(x) - tq.restore_float(qat)(x)).abs().max() < 0.1
    qat = trained(Masked(value), x)
    assert tq.verify(qat, tq.convert(qat), [x]).codes_different == 0


def test_signed_activations_leave_a_product_in_float() -> None:
    config = tq.QConfig(
        activation=tq.QuantScheme(tq.types.int8), input=tq.QuantScheme(tq.types.int8), output=tq.QuantScheme(tq.types.int8)
    )
    site = tq.plan(Masked(0.0), torch.randn(2, 3, 8), config).site("matmul_0")
    assert (site.action, site.reason) == ("float", "no exact kernel multiplies signed codes")


def test_a_rule_leaves_products_in_float() -> None:
    decided = tq.plan(Masked(0.0), torch.randn(2, 3, 8), tq.QConfig().with_rules(tq.Rule(torch.matmul, None)))
    assert {s.action for s in decided.sites if s.op == "matmul"} == {"float"}


@pytest.mark.parametrize(
    "equation", ["ij,jk,kl->il", "...ij,jk->ik", "ii,ij->ij", "ij,kl->ijkl", "ij,jk->i", "ijk,jl->il", 3, "ij,jk->ikm"]
)
def test_other_equations_are_no_product(equation: object) -> None:
    assert contraction(equation) is None


def test_contractions() -> None:
    found = contraction("bhid, bhjd")
    assert found is not None
    assert (found.output, found.batch, found.rows, found.columns, found.summed) == ("ij", "", "i", "j", "bhd")
    found = contraction("bid,bjd->bji")
    assert found is not None
    assert (found.batch, found.rows, found.columns, found.summed) == ("b", "i", "j", "d")
