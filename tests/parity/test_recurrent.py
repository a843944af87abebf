"""Recurrent layers: islands with quantized weights and inputs, or written out step by step on integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import truequant as tq
from truequant.errors import ConversionError

UNROLLED = tq.QConfig(unroll_recurrent=True)
KINDS = [
    (nn.LSTM, {}),
    (nn.GRU, {}),
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu", "bias": False}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True, "dropout": 0.2}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True}),
]


class Model(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], *, whole: bool = False, **options: Any) -> None:
        super().__init__()
        self.layer = kind(6, 5, **options)
        self.out = nn.Linear(5 * (1 + int(self.layer.bidirectional)), 3)
        self.whole = whole

    def forward(self, x: Tensor, *state: Tensor) -> Any:
        hx = None if not state else state if isinstance(self.layer, nn.LSTM) else state[0]
        y, end = self.layer(x, hx)
        return (self.out(y), end) if self.whole else self.out(y)


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("config", [None, UNROLLED], ids=["island", "unrolled"])
def test_every_code(kind: type[nn.RNNBase], options: dict[str, Any], config: tq.QConfig | None) -> None:
    x = torch.randn(4, 4, 6)
    model = Model(kind, batch_first=True, **options)
    qat = tq.prepare(model, x, config)
    with tq.quantizers_off(qat.eval()):
        assert (qat(x) - model.eval()(x)).abs().max() < 1e-6
    tq.calibrate(qat, [x])
    qat.train()(x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in qat.parameters())
    int8 = tq.convert(qat.eval())
    assert ("Island" in int8.ops()) == (config is None)
    runtimes = ("reference",) if config is None else ("reference", "onnxruntime")
    report = tq.verify(qat, int8, [torch.randn(5, 4, 6)], runtimes=runtimes)
    assert report.codes_different == report.outputs_different == 0
    assert (qat(x) - model(x)).abs().max() < 0.15


def test_the_island_computes_with_weights_on_their_grid() -> None:
    x = torch.randn(4, 7, 6)
    model = Model(nn.LSTM, batch_first=True)
    decided = tq.plan(model, x)
    assert [name for name, _ in decided.site("layer").weights] == ["weight_ih_l0", "weight_hh_l0"]
    assert decided.site("layer").reads == ("input_0",)
    qat = tq.prepare(model, x)
    tq.calibrate(qat, [x])
    nodes = tq.convert(qat.eval()).program.nodes
    island = next(n for n in nodes if type(n).__name__ == "Island" and n.op == "lstm.input")
    codes = [t for t in island.tensors if t.dtype == torch.int8]
    scales = [t for t in island.tensors if t.shape == (20, 1)]
    assert [t.shape for t in codes] == [(20, 6), (20, 5)]
    assert not [t for t in island.tensors if t.is_floating_point() and t.numel() > 20]
    for found, scale, name in zip(codes, scales, ("weight_ih_l0", "weight_hh_l0"), strict=True):
        weight = getattr(model.layer, name).detach().numpy()
        assert np.array_equal(found.numpy(), np.rint(weight / scale.numpy()).clip(-127, 127))


def test_rules_of_recurrent_weights() -> None:
    x = torch.randn(4, 7, 6)
    model = Model(nn.LSTM, batch_first=True)
    low = tq.Rule("layer", weight=tq.QuantScheme(tq.types.int4, tq.PerChannel(0)))
    decided = tq.plan(model, x, tq.QConfig().with_rules(low))
    assert decided.quantizer("layer.weight_hh_l0").scheme.qmax == 7
    for rule in (tq.Rule("layer", None), tq.Rule("layer", weight=None)):
        assert tq.plan(model, x, tq.QConfig().with_rules(rule)).site("layer").weights == ()


def test_cells_keep_quantized_weights() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.GRUCell(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.out(self.cell(x, h))

    inputs = torch.randn(4, 6), torch.randn(4, 5)
    qat = tq.prepare(Cells(), inputs)
    tq.calibrate(qat, [inputs])
    qat.train()(*inputs).sum().backward()
    assert qat.cell.weight_hh.grad is not None
    assert dict(tq.quantizers(qat)).keys() >= {"cell.weight_ih", "cell.weight_hh"}
    assert tq.verify(qat, tq.convert(qat.eval()), [inputs], runtimes=("reference",)).codes_different == 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batched", [True, False])
def test_given_states_and_all_results(kind: type[nn.RNNBase], batched: bool) -> None:
    """Batch second, a state among the inputs, the last state among the results."""
    model = Model(kind, whole=True, num_layers=2)
    x = torch.randn(7, 4, 6) if batched else torch.randn(7, 6)
    state = tuple(torch.randn(2, 4, 5) if batched else torch.randn(2, 5) for _ in range(1 + (kind is nn.LSTM)))
    qat = tq.prepare(model, (x, *state), UNROLLED).eval()
    with tq.quantizers_off(qat):
        for want, have in zip(*(pytree.tree_leaves(m(x, *state)) for m in (model, qat)), strict=True):
            assert want.shape == have.shape
            assert (want - have).abs().max() < 1e-6


@pytest.mark.parametrize("config", [None, UNROLLED], ids=["island", "unrolled"])
def test_time_first_takes_the_length_of_the_example(config: tq.QConfig | None) -> None:
    """torch's own layout: the first axis is time, which the recurrence fixes; the second is the batch."""
    x = torch.randn(5, 4, 6)
    qat = tq.prepare(Model(nn.LSTM), x, config, dynamic={0: (1,)})
    tq.calibrate(qat, [x])
    int8 = tq.convert(qat.eval())
    assert [i.shape for i in int8.program.inputs] == [(5, None, 6)]
    report = tq.verify(qat, int8, [x, torch.randn(5, 7, 6)], runtimes=("reference",))
    assert report.codes_different == report.outputs_different == 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_the_whole_model(kind: type[nn.RNNBase]) -> None:
    """Weights and input are quantized as inside a model, batch first too, where torch's float sums differ by an ulp."""
    x = torch.randn(3, 5, 6)
    qat = tq.prepare(kind(6, 5, batch_first=True), x)
    tq.calibrate(qat, [x])
    int8 = tq.convert(qat.eval())
    assert int8.program.edges.keys() == {"input_0"}
    report = tq.verify(qat, int8, [x, torch.randn(7, 5, 6)])
    assert {name: r.grade for name, r in report.runtimes.items()} == {
        "reference": "EXACT",
        "onnxruntime": "EXACT BETWEEN ISLANDS",
    }


class Stream(nn.Module):
    """States in and out, whose batch is the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.layer(x, (h, c))
        return y, h, c


@pytest.mark.parametrize(("dynamic", "batch"), [(None, 3), ({1: (1,), 2: (1,)}, 8)])
def test_streaming_states(
    dynamic: dict[int | str, tuple[int, ...]] | None, batch: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """No batch but the example's fits where nobody says on which axis it lies; torch's log of that reaches nobody."""
    inputs = torch.randn(3, 4, 6), torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)
    qat = tq.prepare(Stream(), inputs, dynamic=dynamic)
    tq.calibrate(qat, [inputs])
    int8 = tq.convert(qat.eval())
    free = None if dynamic else 3
    assert [i.shape for i in int8.program.inputs] == [(free, 4, 6), (1, free, 5), (1, free, 5)]
    states = torch.zeros(1, batch, 5), torch.zeros(1, batch, 5)
    for _ in range(3):
        x = torch.randn(batch, 4, 6)
        with torch.no_grad():
            expected, found = qat(x, *states), int8(x, *states)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        states = found[1:]
    assert "specialized" not in "".join(capfd.readouterr())


def test_weights_lie_once_and_in_int8(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 8)
    layer = nn.LSTM(8, 128, batch_first=True, bidirectional=True)
    qat = tq.prepare(layer, x)
    tq.calibrate(qat, [x])
    int8 = tq.convert(qat.eval())
    int8.save(tmp_path / "l.tq")
    tq.export_onnx(int8, tmp_path / "l.onnx")
    most = 0.31 * 4 * sum(p.numel() for p in layer.parameters())
    assert (tmp_path / "l.tq").stat().st_size < most
    assert (tmp_path / "l.onnx").stat().st_size < most
    graph = onnx.load(tmp_path / "l.onnx").graph
    assert [n.op_type for n in graph.node].count("LSTM") == 1  # though three results are taken
    loaded = tq.load(tmp_path / "l.tq")
    assert all(torch.equal(a, b) for a, b in zip(*(pytree.tree_leaves(m(x)) for m in (int8, loaded)), strict=True))


def test_projected_states(tmp_path: Path) -> None:
    """`proj_size`: no ONNX form as a layer, which the plan says; written out on integers it has one."""
    x = torch.randn(2, 4, 6)
    layer = nn.LSTM(6, 5, proj_size=3, num_layers=2, bidirectional=True, batch_first=True)
    with pytest.warns(UserWarning, match=r"no ONNX form is known of 'lstm_0' \(lstm.input with proj_size\)"):
        qat = tq.prepare(layer, x)
    tq.calibrate(qat, [x])
    with pytest.raises(tq.TruequantError, match="ONNX has no LSTM with proj_size") as caught:
        tq.export_onnx(tq.convert(qat.eval()), tmp_path / "l.onnx")
    assert "unroll_recurrent=True" in str(caught.value.fix)
    qat = tq.prepare(layer, x, UNROLLED)
    with tq.quantizers_off(qat.eval()), torch.no_grad():
        for want, have in zip(*(pytree.tree_leaves(m(x)) for m in (layer.eval(), qat)), strict=True):
            assert (want - have).abs().max() < 1e-6
    tq.calibrate(qat, [x])
    report = tq.verify(qat, tq.convert(qat.eval()), [x])
    assert {r.grade for r in report.runtimes.values()} == {"EXACT"}


def test_a_stored_weight_is_int8_with_a_scale() -> None:
    x = torch.randn(2, 5, 6)
    qat = tq.prepare(nn.GRU(6, 5), x)
    tq.calibrate(qat, [x])
    program = tq.convert(qat.eval()).program
    island = next(n for n in program.nodes if type(n).__name__ == "Island" and n.op == "gru.input")
    at = next(i for i, t in enumerate(island.tensors) if t.dtype == torch.int8)
    codes, scale = island.tensors[at : at + 2]
    for i, wrong in ((at, codes.float()), (at + 1, scale.double()), (at + 1, scale[:-1])):
        tensors = tuple(wrong if j == i else t for j, t in enumerate(island.tensors))
        with pytest.raises(tq.TruequantError, match="a weight that is no codes and scale"):
            replace(island, tensors=tensors).check(program.edges)


def test_the_switch_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "q.toml"
    path.write_text("unroll_recurrent = true")
    assert tq.QConfig.from_file(path) == UNROLLED
    path.write_text("unroll_recurrent = 1")
    with pytest.raises(tq.TruequantError, match="expected: true or false"):
        tq.QConfig.from_file(path)


def test_a_float_layer_that_adds_up_in_another_order() -> None:
    """torch folds the batch of a product where a weight needs a gradient; the message says so, and its fix works."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    qat = tq.prepare(nn.Sequential(nn.GRU(8, 16, batch_first=True)), x, tq.QConfig().with_rules(tq.Rule("0", None))).eval()
    with pytest.raises(tq.TruequantError, match="the rounding of float sums") as caught:
        tq.convert(qat)
    assert "model.requires_grad_(False) before tq.convert" in str(caught.value.fix)
    qat.requires_grad_(False)
    assert torch.equal(tq.convert(qat)(x)[0], qat(x)[0])


class LastStep(nn.Module):
    """The last step of each sequence, packed or padded."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.rnn, self.head, self.packed = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3), packed

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.packed:
            _, (h, _) = self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            last = h[-1]
        else:
            y, _ = self.rnn(x)
            last = y[torch.arange(len(y)), lengths - 1]
        result: Tensor = self.head(last)
        return result


def test_packed_sequences_are_refused_with_what_to_write_instead() -> None:
    torch.manual_seed(0)
    packed, padded = LastStep(True).eval(), LastStep(False).eval()
    padded.load_state_dict(packed.state_dict())
    inputs = torch.randn(3, 7, 8), torch.tensor([7, 3, 5])
    torch.testing.assert_close(padded(*inputs), packed(*inputs))
    with pytest.warns(UserWarning, match="tq.convert will refuse this model: no program holds") as caught:
        refused = tq.calibrate(tq.prepare(packed, inputs), [inputs], progress=False).eval()
    advice = "fix:      give the recurrent layer padded sequences, and take the last step of each by its length: "
    assert advice + "y[torch.arange(len(y)), lengths - 1]" in str(caught[0].message)
    with pytest.raises(ConversionError, match="no program holds what the evaluated forward computes: '_pack_padded") as error:
        tq.convert(refused)
    assert advice in str(error.value)
    qat = tq.calibrate(tq.prepare(padded, inputs), [inputs], progress=False).eval()
    int8 = tq.convert(qat)
    other = torch.randn(2, 7, 8), torch.tensor([1, 6])
    assert torch.equal(int8(*other), qat(*other))
    assert tq.verify(qat, int8, [inputs]).codes_different == 0
