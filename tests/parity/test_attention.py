"""Softmax and attention: the oracle, evaluation, the program and onnxruntime compute the same codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.fake import FakeQuantize
from truequant.runtimes import EdgeReader
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnxruntime.session import Level

FORMS: tuple[Layout, ...] = ("qdq", "qoperator")
LEVELS: tuple[Level, ...] = ("none", "basic", "extended", "all")


class Heads(nn.Module):
    """Four heads, whose attention is `form(self, q, k, v, *masks)`."""

    def __init__(self, form: Callable[..., Any]) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.form, self.drop, self.softmax = form, nn.Dropout(0.2), nn.Softmax(-1)
        self.register_buffer("past", torch.ones(13, 13, dtype=torch.bool).tril())

    def forward(self, x: Tensor, *masks: Tensor) -> Any:
        q, k, v = (f(x).unflatten(-1, (4, 8)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = self.form(self, q, k, v, *masks)
        first, *rest = y if isinstance(y, tuple) else (y,)
        out = self.out(first.transpose(1, 2).flatten(2))
        return (out, *rest) if rest else out


def by_hand(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return self.drop((q @ k.mT / math.sqrt(8)).softmax(-1)) @ v


def causal_by_hand(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return self.softmax((0.3 * (q @ k.mT)).masked_fill(~self.past, -math.inf)) @ v


def added(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    far = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    return self.drop((q @ k.mT / math.sqrt(8) + far).softmax(-1)) @ v


def chosen(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, None, None, :] > 0, q @ k.mT, -1e9).softmax(-1) @ v


def bmm(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    joined = (t.reshape(-1, *t.shape[2:]) for t in (q, k, v))
    a, b, c = joined
    return torch.bmm(torch.bmm(a, b.transpose(1, 2)).softmax(-1), c).view(v.shape)


def einsum(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * 0.35
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


def shown_too(self: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    weights = (q @ k.mT / math.sqrt(8)).softmax(-1)
    return weights @ v, weights


def in_one_call(**options: Any) -> Callable[..., Tensor]:
    return lambda self, q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def grouped(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], is_causal=True, enable_gqa=True)


def crossed(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[:, :, :5], k, v, is_causal=True, scale=0.4)


def yes_and_no(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask[:, None, None, :] > 0)


def far_below(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, torch.zeros(13).masked_fill(mask[:, None, None, :] == 0, -math.inf))


class Library(nn.Module):
    """`nn.MultiheadAttention`, which returns its weights or not."""

    def __init__(self, *, shows: bool) -> None:
        super().__init__()
        self.before, self.after, self.shows = nn.Linear(32, 32), nn.Linear(32, 32), shows
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, dropout=0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        x = self.before(x)
        y, weights = self.attention(x, x, x, key_padding_mask=mask == 0, need_weights=self.shows)
        return (self.after(y), weights) if self.shows else self.after(y)


def tokens() -> Tensor:
    return torch.randn(4, 13, 32, generator=torch.Generator().manual_seed(0)) * 2


def padding() -> Tensor:
    """Right and left padding, none, and a row that sees one place."""
    mask = torch.ones(4, 13, dtype=torch.long)
    mask[0, 6:], mask[1, :5], mask[3, 1:] = 0, 0, 0
    return mask


UNMASKED = {
    "by hand": by_hand, "causal by hand": causal_by_hand, "bmm": bmm, "einsum": einsum, "shown too": shown_too,
    "one call": in_one_call(), "causal": in_one_call(is_causal=True), "grouped": grouped, "crossed": crossed,
}  # fmt: skip
MASKED = {"added": added, "chosen": chosen, "yes and no": yes_and_no, "far below": far_below}


def trained(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Calibrated, with one training step behind it, in evaluation."""
    torch.manual_seed(0)
    qat = tq.calibrate(tq.prepare(model, inputs), [inputs]).train()
    found = qat(*inputs)
    (found[0] if isinstance(found, tuple) else found).square().mean().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in qat.parameters())
    assert all(bool(p.grad.abs().any()) for n, p in qat.named_parameters() if n.endswith("weight") and p.grad is not None)
    torch.optim.SGD(qat.parameters(), 0.01).step()
    return qat.eval()


def exact(model: nn.Module, inputs: tuple[Tensor, ...], *, islands: bool = False) -> nn.Module:
    """Evaluation, the program, and onnxruntime in both forms: 0 codes differ."""
    qat = trained(model, inputs)
    int8 = tq.convert(qat)
    assert int8.ops()["Attend"] >= 1
    expected = tq.codes(qat, inputs)
    for form in FORMS:
        for level in LEVELS:
            shipped = EdgeReader(int8.program, form=form, level=level, threads=2).codes(*inputs)
            assert all(torch.equal(expected[n].int(), shipped[n].int()) for n in expected if n in shipped), (form, level)
    report = tq.verify(qat, int8, [inputs], runtimes=("reference", "onnxruntime"))
    grades = ("EXACT", "EXACT BETWEEN ISLANDS") if islands else ("EXACT",)
    assert all(result.grade in grades for result in report.runtimes.values()), str(report)
    return qat


@pytest.mark.parametrize("name", UNMASKED)
def test_unmasked_forms(name: str) -> None:
    exact(Heads(UNMASKED[name]), (tokens(),))
    plan = tq.plan(Heads(UNMASKED[name]), tokens())
    assert not [s.name for s in plan.sites if s.action == "float"]


@pytest.mark.parametrize("name", MASKED)
def test_masked_forms(name: str) -> None:
    qat = exact(Heads(MASKED[name]), (tokens(), padding()))
    found = qat(tokens(), padding())
    moved = tokens()
    moved[0, 6:] = 7.0  # what is hidden
    assert torch.equal(found[0, :6], qat(moved, padding())[0, :6])


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_that_hides_nothing_in_the_example_hides_later(name: str) -> None:
    everything = torch.ones(4, 13, dtype=torch.long)
    qat = trained(Heads(MASKED[name]), (tokens(), everything))
    int8 = tq.convert(qat)
    assert torch.equal(int8(tokens(), padding()), qat(tokens(), padding()))
    assert not torch.equal(int8(tokens(), padding()), int8(tokens(), everything))


@pytest.mark.parametrize("shows", [False, True])
def test_multihead_attention(shows: bool) -> None:
    qat = exact(Library(shows=shows), (tokens(), padding()))
    if shows:
        weights = qat(tokens(), padding())[1].detach()
        assert float((weights.sum(-1) - 1).abs().max()) < 1e-6
        assert float(weights[0, :, 6:].abs().max()) == 0.0


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_softmax_that_is_an_edge(axis: int) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(self.linear(x), axis)

    qat = trained(Model(), (tokens(),))
    int8 = tq.convert(qat)
    assert int8.ops()["Softmax"] == 1
    report = tq.verify(qat, int8, [tokens()], runtimes=("reference", "onnxruntime"))
    assert all(result.grade == "EXACT" for result in report.runtimes.values()), str(report)


def test_lengths_that_change() -> None:
    for form in (by_hand, in_one_call(is_causal=True), in_one_call()):
        qat = tq.calibrate(tq.prepare(Heads(form), (tokens(),), dynamic={0: (1,)}), [(tokens(),)]).eval()
        int8 = tq.convert(qat)
        for length in (1, 7, 13, 40):
            x = torch.randn(2, length, 32)
            report = tq.verify(qat, int8, [x], runtimes=("reference", "onnxruntime"))
            assert all(result.grade == "EXACT" for result in report.runtimes.values()), str(report)


def test_a_biased_mask_stays_an_island_and_the_plan_says_so() -> None:
    bias = in_one_call(attn_mask=torch.linspace(-1.0, 1.0, 13).expand(13, 13))
    sites = {s.name: s for s in tq.plan(Heads(bias), tokens()).sites}
    assert (sites["scaled_dot_product_attention_0"].action, sites["scaled_dot_product_attention_0"].reason) == (
        "float", "it adds a bias to its scores",
    )  # fmt: skip


@pytest.mark.parametrize("out", ["softmax_0", "matmul_0", "matmul_1"])
def test_a_rule_leaves_attention_an_island(out: str) -> None:
    """As it was before there was an exact form: the softmax is float, products that no rule names are not."""
    config = tq.QConfig().with_rules(tq.Rule(out, None))
    actions = {s.name: s.action for s in tq.plan(Heads(by_hand), tokens(), config).sites}
    assert actions["softmax_0"] == "float"
    assert {n for n, a in actions.items() if a in ("attend", "weights", "scaled", "masked")} == set()
    assert [n for n in ("matmul_0", "matmul_1") if actions[n] == "product"] == [n for n in ("matmul_0", "matmul_1") if n != out]


def test_scores_keep_their_largest() -> None:
    qat = tq.calibrate(tq.prepare(Heads(by_hand), tokens()), [tokens(), tokens() * 3, tokens()])
    scores = qat.quantizers["div_0"]
    assert isinstance(scores, FakeQuantize)
    with tq.quantizers_off(qat), torch.no_grad():
        q, k = (f(tokens() * 3).unflatten(-1, (4, 8)).transpose(1, 2) for f in (qat.query, qat.key))
        exact_scores = q @ k.mT / math.sqrt(8)
    high = (255 - scores.zero_point) * scores.scale
    low = -scores.zero_point * scores.scale
    assert abs(float(high) - float(exact_scores.max())) < 2 * float(scores.scale)
    lowest = max(float(exact_scores.min()), float(exact_scores.amax(-1).min()) - 10)
    assert abs(float(low) - lowest) < 2 * float(scores.scale)


def transformer(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model of transformers with random weights, and padded inputs."""
    import transformers

    small: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 4, "max_position_embeddings": 32, "attn_implementation": name.partition(" ")[2]}
    torch.manual_seed(0)
    if name.startswith("bert"):
        model: nn.Module = transformers.BertModel(transformers.BertConfig(**small), add_pooling_layer=False)
    else:
        grouped_heads = {"num_key_value_heads": 2, "use_cache": False}
        model = transformers.LlamaModel(transformers.LlamaConfig(**small, **grouped_heads))
    return model.eval(), {"input_ids": torch.arange(52).reshape(4, 13) % 50, "attention_mask": padding()}


@pytest.mark.parametrize("name", ["bert sdpa", "bert eager", "llama sdpa", "llama eager"])
def test_models_of_transformers(name: str) -> None:
    model, inputs = transformer(name)
    qat = tq.calibrate(tq.prepare(model, inputs), [inputs]).eval()
    int8 = tq.convert(qat)
    assert int8.ops()["Attend"] == 1
    floats = {s.op for s in tq.plan(model, inputs).sites if s.action == "float"}
    assert not floats & {"softmax", "scaled_dot_product_attention", "matmul"}
    report = tq.verify(qat, int8, [inputs], runtimes=("reference", "onnxruntime"))
    assert report.runtimes["reference"].grade == "EXACT"
    assert report.runtimes["onnxruntime"].grade in ("EXACT", "EXACT BETWEEN ISLANDS"), str(report)
