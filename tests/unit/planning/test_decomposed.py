"""Attention written out computes what torch's own does, and the fused paths bypass nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.planning import decomposed

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "batch first": ({"batch_first": True}, {}),
    "no bias": ({"bias": False, "batch_first": True}, {}),
    "other widths": ({"kdim": 6, "vdim": 10, "batch_first": True}, {}),
    "added key and value": ({"add_bias_kv": True, "batch_first": True}, {}),
    "added zeros": ({"add_zero_attn": True, "batch_first": True}, {}),
    "no weights": ({"batch_first": True}, {"need_weights": False}),
    "weights by head": ({"batch_first": True}, {"average_attn_weights": False}),
    "float mask": ({"batch_first": True}, {"attn_mask": torch.linspace(-1, 1, 20).reshape(4, 5)}),
    "bool mask": ({"batch_first": True}, {"attn_mask": torch.ones(4, 5, dtype=torch.bool).triu(2)}),
    "mask by head": ({"batch_first": True}, {"attn_mask": torch.linspace(-1, 1, 120).reshape(6, 4, 5)}),
    "padding": ({"batch_first": True}, {"key_padding_mask": torch.arange(5) > torch.tensor([[2], [3], [4]])}),
    "both masks": (
        {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True},
        {
            "attn_mask": torch.ones(4, 5, dtype=torch.bool).triu(2),
            "key_padding_mask": torch.arange(5) > torch.tensor([[2], [3], [4]]),
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_attention_written_out(name: str) -> None:
    options, arguments = CASES[name]
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, **options)
    for p in module.parameters():
        nn.init.normal_(p)
    shapes = [(3, 4, 8), (3, 5, options.get("kdim", 8)), (3, 5, options.get("vdim", 8))]
    q, k, v = (torch.randn(s) for s in shapes)
    if not options.get("batch_first"):
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    form = decomposed(module)
    assert form is not None
    expected, found = module(q, k, v, **arguments), form(module, q, k, v, **arguments)
    torch.testing.assert_close(found[0], expected[0])
    if expected[1] is None:
        assert found[1] is None
    else:
        torch.testing.assert_close(found[1], expected[1])


def test_attention_without_a_batch() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2)
    x = torch.randn(5, 8)
    form = decomposed(module)
    assert form is not None
    torch.testing.assert_close(form(module, x, x, x), module(x, x, x))


def test_a_subclass_with_a_forward_of_its_own_keeps_it() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            return query, None

    assert decomposed(Own(8, 2)) is None


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=mask)


def test_the_fused_path_bypasses_no_quantizer() -> None:
    """In evaluation without gradients torch would take the fused path, and turn padded batches into nested tensors."""
    torch.manual_seed(0)
    x, mask = torch.randn(3, 5, 8), torch.arange(5) > torch.tensor([[2], [3], [4]])
    qat = tq.prepare(Encoder(), (x, mask))
    qat(x, mask)
    seen = set(tq.codes(qat, (x, mask)))
    for site in ("self_attn.linear_0", "self_attn.linear_1", "self_attn.linear_2", "self_attn.out_proj", "linear1", "linear2"):
        assert f"encoder.layers.1.{site}" in seen
    qat.eval()
    with torch.no_grad():
        assert torch.equal(qat(x, mask), tq.convert(qat)(x, mask))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # which torch itself uses there
def test_off_is_the_original() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(3, 5, 8), torch.arange(5) > torch.tensor([[2], [3], [4]])
    model = Encoder().eval()
    qat = tq.prepare(model, (x, mask)).eval()
    with tq.quantizers_off(qat), torch.no_grad():
        assert torch.equal(qat(x, mask), model(x, mask))


@pytest.mark.parametrize(
    ("mode", "ops"), [("mean", {"Lookup": 1, "GlobalAverage": 1}), ("sum", {"Island": 1}), ("max", {"Island": 1})]
)
def test_bags_of_one_size_are_rows_and_their_mean_sum_or_largest(mode: str, ops: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(50, 16, mode=mode), nn.Linear(16, 3))
    x = torch.randint(0, 50, (9, 12))
    qat = tq.prepare(model, x)
    tq.calibrate(qat, [x])
    with tq.quantizers_off(qat):
        assert torch.allclose(qat(x), model(x), atol=1e-6)
    qat.train()(x).sum().backward()
    assert qat[0].weight.grad is not None
    int8 = tq.convert(qat.eval())
    assert {kind: int8.ops().get(kind) for kind in ops} == ops
    assert tq.verify(qat, int8, [x, torch.randint(0, 50, (3, 12))]).codes_different == 0


def test_bags_told_by_offsets_are_an_island() -> None:
    x = (torch.randint(0, 50, (20,)), torch.tensor([0, 5, 9]))
    qat = tq.prepare(nn.EmbeddingBag(50, 16), x)
    assert qat(*x).shape == (3, 16)
    assert torch.equal(tq.convert(tq.calibrate(qat, [x]).eval())(*x), qat(*x))
