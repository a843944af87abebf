"""Embeddings whose table is integer weights: what a rule asks for, and what a linear layer that holds the same table has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.integer.nodes import Island, WeightOnlyLinear

IDS = torch.tensor([[3, 39, 0, 7, 7], [12, 1, 38, 20, 5]])


class Called(nn.Module):
    """A table that a function reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(40, 32))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.lin, self.head = nn.Embedding(40, 32), nn.Linear(32, 32), nn.Linear(32, 40, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.lin(self.emb(ids))))
        return logits


def rows(table: np.ndarray[Any, Any], groups: int | None) -> np.ndarray[Any, Any]:
    """The 4-bit values of a table, float32: one scale for all (None), or for each of `groups` parts of a row."""
    parts = table.reshape(1, -1) if groups is None else table.reshape(-1, table.shape[1] // groups)
    scale = (np.abs(parts).max(1, keepdims=True) / np.float32(7)).astype(np.float32)
    codes = np.clip(np.rint(parts / scale), -7, 7).astype(np.float32)
    return (codes * scale).reshape(table.shape)


def run_in_onnxruntime(path: Path, ids: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: ids.numpy()})[0])


@pytest.mark.parametrize(("granularity", "groups"), [(tq.PerTensor(), None), (tq.PerChannel(0), 1), (tq.PerGroup(16), 2)])
@pytest.mark.parametrize("kind", ["module", "function"])
def test_a_rule_makes_a_table_of_integer_weights(granularity: Any, groups: int | None, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 32)) if kind == "module" else Called()
    rule = tq.Rule("0" if kind == "module" else "embedding_0", weight=tq.QuantScheme(tq.types.int4, granularity))
    config = tq.QConfig.preset("w4a16").with_rules(rule)
    qat = tq.prepare(model, IDS, config)
    table = next(iter(model.parameters()))
    want = torch.from_numpy(rows(table.detach().numpy(), groups)[IDS.numpy()])
    trained = qat.train()(IDS)
    assert torch.equal(trained, want)
    trained.sum().backward()
    gradient = next(p.grad for p in qat.parameters() if p.shape == table.shape)
    assert gradient is not None
    assert torch.equal(gradient[:, 0], torch.bincount(IDS.flatten(), minlength=40).float())
    assert torch.equal(qat.eval()(IDS), want)
    int8 = tq.convert(qat)
    assert int8.size_bytes < 0.6 * table.numel() + 4 * 40 * 2 + 2000  # half a byte a weight
    int8.save(tmp_path / "m.tq")
    assert torch.equal(tq.load(tmp_path / "m.tq")(IDS), want)
    tq.export_onnx(int8, tmp_path / "m.onnx")
    assert torch.equal(run_in_onnxruntime(tmp_path / "m.onnx", IDS), want)


def test_rows_of_integer_weights_on_a_grid_are_exact_in_every_form() -> None:
    """In a model of integer edges the rows are then codes, of the bits that the rule says."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 8))
    scheme, output = tq.QuantScheme(tq.types.int4, tq.PerChannel(0)), tq.QuantScheme(tq.types.uint8, symmetric=False)
    config = tq.QConfig.preset("w8a8").with_rules(tq.Rule("0", weight=scheme, output=output))
    plan = tq.plan(model, IDS, config)
    (site,) = (s for s in plan.sites if s.name == "0")
    assert dict(site.weights)["weight"] == "0.weight"
    assert site.quantizer is not None
    assert not any("no weight of" in note for note in plan.notes)
    qat = tq.calibrate(tq.prepare(model, IDS, plan), [IDS], progress=False).eval()
    report = tq.verify(qat, tq.convert(qat), [IDS])
    assert {name: str(run.grade) for name, run in report.runtimes.items()} == {"reference": "EXACT", "onnxruntime": "EXACT"}
    assert report.codes_compared > 2 * IDS.numel() * 32


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied()
    qat = tq.prepare(model, IDS, "w4a16")
    assert dict(next(s for s in tq.plan(model, IDS, "w4a16").sites if s.name == "emb").weights) == {"weight": "head.weight"}
    qat.train()(IDS).sum().backward()
    qat.eval()
    int8 = tq.convert(qat)
    (island,) = (n for n in int8.program.nodes if isinstance(n, Island) and n.op == "embedding.default")
    head = next(n for n in int8.program.nodes if isinstance(n, WeightOnlyLinear) and n.weight.shape == (40, 32))
    assert torch.equal(island.tensors[0], head.weight)
    assert torch.equal(island.tensors[1], head.weight_scale)
    int8.save(tmp_path / "m.tq")
    assert int8.size_bytes < 40 * 16 + 32 * 16 + 40 * 4 + 32 * 4 + 32 * 4 + 3500
    assert torch.equal(tq.load(tmp_path / "m.tq")(IDS), qat(IDS))
    apart = tq.QConfig.preset("w4a16").with_rules(tq.Rule("emb", None))
    left = next(s for s in tq.plan(model, IDS, apart).sites if s.name == "emb")
    assert not left.weights


def test_rows_longer_than_max_norm_are_shortened_before_they_are_quantized() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 32, max_norm=1.0))
    config = tq.QConfig.preset("w4a16").with_rules(tq.Rule("0", weight=tq.QuantScheme(tq.types.int4, tq.PerChannel(0))))
    with pytest.warns(UserWarning, match="embedding_renorm_"):  # no program holds what overwrites a table
        qat = tq.prepare(model, IDS, config)
    y = qat.train()(IDS)
    table = F.embedding(torch.arange(40), model[0].weight.detach().clone(), max_norm=1.0)
    assert torch.equal(y, torch.from_numpy(rows(table.numpy(), 1))[IDS])


def test_the_weights_of_a_recurrent_layer_may_share_a_scale() -> None:
    """torch.export leaves a step of such a scale out among the users of what it reads."""
    x = torch.randn(2, 5, 8)
    config = tq.QConfig(weight=tq.QuantScheme(tq.types.int8, tq.PerTensor()))
    qat = tq.calibrate(tq.prepare(nn.LSTM(8, 6, batch_first=True), x, config), [x], progress=False).eval()
    int8 = tq.convert(qat)
    assert torch.equal(int8(x)[0], qat(x)[0])
