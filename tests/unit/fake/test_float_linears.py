"""Weight-only and dynamic linear layers: what training, evaluation, program and file compute, and where they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ArgumentError, ArgumentTypeError, ConversionError, SchemeError, VerificationError
from truequant.fake import fake_quantize_tokens
from truequant.integer import IntegerProgram, ProgramInput
from truequant.integer.nodes import DynamicLinear, WeightOnlyLinear
from truequant.runtimes.export import onnx_bytes
from truequant.schemes import Dynamic, PerGroup, int4, int8, uint8

PRESETS = ("w8a16", "w4a16", "w8a8-dynamic", "w4a8-dynamic")
DYNAMIC = tq.QuantScheme(int8, observer=Dynamic())


def encoder(seed: int = 0) -> nn.TransformerEncoderLayer:
    torch.manual_seed(seed)
    return nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)


def tokens(seed: int = 1, length: int = 10) -> Tensor:
    return torch.randn(3, length, 64, generator=torch.Generator().manual_seed(seed))


def one(node: WeightOnlyLinear | DynamicLinear) -> tq.Int8Model:
    shape = (None, int(node.weight.shape[1]))
    return tq.Int8Model(IntegerProgram((ProgramInput("x", "float32", shape),), (node,), {}, "y", "onnxruntime"))


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_needs_calibration_and_program_and_evaluation_are_the_same_bits(preset: str, tmp_path: Path) -> None:
    x = tokens()
    qat = tq.prepare(encoder(), x, preset).eval()
    int8 = tq.convert(qat)
    kind = "DynamicLinear" if "dynamic" in preset else "WeightOnlyLinear"
    assert int8.ops()[kind] == 6
    assert torch.equal(int8(x), qat(x))
    int8.save(tmp_path / "m.tq")
    assert torch.equal(tq.load(tmp_path / "m.tq")(x), qat(x))
    for batches in (2, 5):
        wide = tokens(batches).repeat(batches, 1, 1)
        assert torch.equal(int8(wide), qat(wide))


@pytest.mark.parametrize("preset", PRESETS)
def test_onnxruntime_is_close_and_never_called_exact(preset: str, tmp_path: Path) -> None:
    x = tokens()
    qat = tq.prepare(encoder(), x, preset, dynamic={0: (1,)}).eval()
    int8 = tq.convert(qat)
    report = tq.verify(qat, int8, [x, tokens(4, 17)])
    assert report.runtimes["reference"].outputs_different == 0
    assert [r.grade for r in report.runtimes.values()] == ["CLOSE", "CLOSE"]
    assert report.runtimes["onnxruntime"].output_error < 1e-5
    assert "EXACT cannot be promised" in str(report)
    with pytest.raises(VerificationError, match="CLOSE"):
        tq.assert_exact(qat, int8, [x])
    tq.verify(qat, int8, [x], require="CLOSE")
    tq.export_onnx(int8, tmp_path / "m.onnx", program=True)
    assert tq.verify(None, tmp_path / "m.onnx", [x]).runtimes["onnxruntime"].grade == "CLOSE"


def test_another_weight_is_different() -> None:
    x = tokens()
    qat = tq.prepare(encoder(), x, "w4a16").eval()
    int8 = tq.convert(tq.prepare(encoder(2), x, "w4a16").eval())
    assert tq.verify(qat, int8, [x], runtimes=("reference",)).runtimes["reference"].grade == "DIFFERENT"


@pytest.mark.parametrize("groups", [1, 2])
def test_a_dynamic_layer_against_integers(groups: int) -> None:
    generator = np.random.default_rng(groups)
    x = generator.standard_normal((5, 8)).astype(np.float32)
    x[3] = 0.0
    codes = generator.integers(-127, 128, (3, 8)).astype(np.int8)
    scale = generator.uniform(0.01, 0.1, (3, groups)).astype(np.float32)
    bias = generator.standard_normal(3).astype(np.float32)
    int8 = one(DynamicLinear("x", "y", torch.tensor(codes), torch.tensor(scale), torch.tensor(bias), 127))
    wanted = np.empty((5, 3), np.float32)
    for row, token in enumerate(x):
        step = np.maximum(np.float32(np.abs(token).max()) / np.float32(127), np.float32(2.0**-64))
        q = [int(np.clip(np.rint(v / step), -127, 127)) for v in token]
        for out in range(3):
            sums = [
                sum(q[i] * int(codes[out, i]) for i in range(g * 8 // groups, (g + 1) * 8 // groups)) for g in range(groups)
            ]
            if groups == 1:
                y = np.float32(sums[0]) * scale[out, 0] * step
            else:
                y = np.float32(sum(s * float(scale[out, g]) for g, s in enumerate(sums))) * step
            wanted[row, out] = y + bias[out]
    assert np.array_equal(int8(torch.tensor(x)).numpy(), wanted)
    assert np.array_equal(tq.compile(int8)(torch.tensor(x)).numpy(), wanted) or groups > 1


def test_integers_stay_exact_where_pairs_would_saturate() -> None:
    node = DynamicLinear("x", "y", torch.full((2, 64), 127, dtype=torch.int8), torch.ones(2, 1), None, 127)
    x = torch.ones(4, 64)
    assert torch.equal(tq.compile(one(node))(x), one(node)(x))
    assert float(one(node)(x)[0, 0]) == pytest.approx(64 * 127.0, rel=1e-6)


def test_tokens_have_grids_of_their_own_and_gradients_pass() -> None:
    x = torch.tensor([[1.0, -2.54, 0.005], [100.0, 0.3, 0.0]], requires_grad=True)
    y = fake_quantize_tokens(x, 127)
    step = torch.tensor([[2.54 / 127], [100.0 / 127]])
    assert torch.allclose(y, torch.round(x / step) * step)
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    (y * weights).sum().backward()
    assert torch.equal(x.grad, weights)  # type: ignore[arg-type]
    other = x.detach().clone()
    other[1] = 0.0
    assert torch.equal(fake_quantize_tokens(other, 127)[0], y[0])


@pytest.mark.parametrize("preset", PRESETS)
def test_training_moves_every_weight_and_evaluation_follows(preset: str) -> None:
    x = tokens()
    qat = tq.prepare(encoder(), x, preset).train()
    target = torch.randn(3, 10, 64, generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.SGD(tq.training.parameter_groups(qat), 0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (qat(x) - target).square().mean()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for n, p in qat.named_parameters() if "weight" in n)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        trained = qat(x)
    qat.eval()
    with torch.no_grad():
        assert float((qat(x) - trained).abs().max()) < 1e-4
    assert torch.equal(tq.convert(qat)(x), qat(x))


def test_gradients_pass_in_evaluation() -> None:
    x = tokens().requires_grad_()
    qat = tq.prepare(encoder(), x.detach(), "w8a8-dynamic").eval()
    qat(x).square().mean().backward()
    assert bool(x.grad.abs().sum() > 0)  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.equal(qat(x), tq.convert(qat)(x))


@pytest.mark.parametrize("scheme", [tq.scales.LSQ(), tq.scales.TQT()])
def test_learned_scales_of_groups_train(scheme: Any) -> None:
    x = torch.randn(16, 64)
    config = tq.QConfig(tq.QuantScheme(int4, PerGroup(16), scale=scheme), None, None, None)
    qat = tq.prepare(nn.Sequential(nn.Linear(64, 8)), x, config).train()
    quantizer: Any = qat[0].quantizers["weight"]
    assert tuple(quantizer.scale.shape) == (8, 4)
    qat(x).square().mean().backward()
    assert bool((quantizer.shift.grad != 0).all())
    qat.eval()
    assert torch.equal(tq.convert(qat)(x), qat(x))


def test_the_file_holds_packed_int4_behind_a_blocked_dequantizer() -> None:
    x = torch.randn(2, 64)
    program = tq.convert(tq.prepare(nn.Sequential(nn.Linear(64, 32)), x, "w4a16")).program
    graph = onnx.load_model_from_string(onnx_bytes(program)).graph
    (node,) = (n for n in graph.node if n.op_type == "DequantizeLinear")
    attributes = {a.name: a.i for a in node.attribute}
    assert attributes == {"axis": 0, "block_size": 32}
    tensors = {t.name: t for t in graph.initializer}
    assert tensors[node.input[0]].data_type == onnx.TensorProto.INT4
    assert len(tensors[node.input[0]].raw_data) == 64 * 32 // 2
    assert list(tensors[node.input[1]].dims) == [2, 32]
    assert [n.op_type for n in graph.node][1:] == ["MatMul", "Add"]


def test_gptq_beats_nearest_on_weights_alone() -> None:
    x = tokens().repeat(8, 1, 1) * torch.linspace(0.1, 3.0, 64)
    errors = {}
    for name, method in (("nearest", None), ("gptq", tq.methods.GPTQ())):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 16))
        qat = tq.prepare(model, x, "w4a16")
        tq.calibrate(qat, [x], method)
        errors[name] = float((qat.eval()(x) - model(x)).square().mean().detach())
        assert torch.equal(tq.convert(qat)(x), qat(x))
    assert errors["gptq"] < 0.7 * errors["nearest"]


def test_one_layer_of_an_integer_model_reads_floats() -> None:
    x = torch.randn(8, 16)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    config = tq.QConfig().with_rules(tq.Rule("0", input=None))
    qat = tq.calibrate(tq.prepare(model, x, config), [x]).eval()
    int8 = tq.convert(qat)
    assert {"WeightOnlyLinear", "Linear"} <= set(int8.ops())
    assert torch.equal(int8(x), qat(x))
    report = tq.verify(qat, int8, [x])
    assert report.runtimes["reference"].codes_different == 0
    assert report.runtimes["reference"].codes_compared > 0
    assert {r.grade for r in report.runtimes.values()} == {"CLOSE"}


def test_wrapped_by_hand() -> None:
    x = torch.randn(6, 16)
    layer = tq.QATModuleWrapper.wrap(nn.Linear(16, 4), weight=tq.QuantScheme(int8, tq.PerChannel(0)), input=DYNAMIC)
    layer.train()(x).sum().backward()
    alone = tq.prepare(nn.Sequential(nn.Linear(16, 4)), x, "w8a8-dynamic").eval()
    alone[0].load_state_dict({k: v for k, v in layer.state_dict().items() if "quantizers" not in k}, strict=False)  # type: ignore[operator]
    assert torch.equal(layer.eval()(x), alone(x))


def test_convolutions_stay_float_and_say_why() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    plan = tq.plan(model, torch.randn(1, 1, 8, 8), "w8a8-dynamic")
    assert plan.site("0").action == "float"
    assert plan.site("0").reason == "its input is left in float: scales of tokens are for linear layers"
    assert plan.site("2").action == "dynamic"
    assert tq.Plan.from_json(plan.to_json()) == plan


CONV = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (tq.QConfig().with_rules(tq.Rule("0", input=DYNAMIC)), "is for what a linear layer reads, and this is conv2d"),
        (tq.QConfig().with_rules(tq.Rule("1", input=DYNAMIC)), "is for what a linear layer reads, and this is relu"),
        (tq.QConfig().with_rules(tq.Rule("3", output=DYNAMIC)), "Dynamic() is for what a linear layer reads"),
        (tq.QConfig(weight=DYNAMIC), "Dynamic() is for what a linear layer reads"),
        (
            tq.QConfig().with_rules(tq.Rule("3", input=tq.QuantScheme(uint8, observer=Dynamic()))),
            "cannot be quantized at run time in this way",
        ),
        (tq.QConfig(tq.QuantScheme(int4, PerGroup(32)), None, None, None), "144 inputs do not make groups of 32"),
        (tq.QConfig(tq.QuantScheme(int4, PerGroup(36))), "cannot be deployed to target"),
    ],
)
def test_what_has_no_tokens_is_refused(config: tq.QConfig, words: str) -> None:
    with pytest.raises(SchemeError) as caught:
        tq.plan(CONV, torch.randn(1, 1, 8, 8), config)
    assert words in str(caught.value)


def test_a_model_without_linear_layers_and_ranges_that_are_none() -> None:
    with pytest.raises(SchemeError, match="the model has none"):
        tq.plan(nn.Sequential(nn.Conv2d(1, 4, 3)), torch.randn(1, 1, 8, 8), "w8a8-dynamic")
    qat = tq.prepare(nn.Sequential(nn.Linear(4, 2)), torch.randn(2, 4), "w8a8-dynamic")
    with pytest.raises(ArgumentTypeError, match="not a method"):
        tq.calibrate(qat, [torch.randn(2, 4)], Dynamic())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="scales of tokens are for linear layers"):
        tq.QATModuleWrapper.wrap(nn.Conv2d(1, 1, 1), weight=tq.QuantScheme(int8), input=DYNAMIC)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_scale": torch.ones(3, 3)}, "weight and scales do not fit"),
        ({"weight_scale": torch.zeros(3, 1)}, "weight_scale cannot be"),
        ({"bias": torch.zeros(2)}, "bias of a wrong shape"),
        ({"qmax": 200}, "no such codes"),
        ({"weight": torch.ones(3, 8)}, "weight has a wrong dtype"),
    ],
)
def test_nodes_that_lie_are_refused(change: dict[str, Any], words: str) -> None:
    fields = {
        "weight": torch.ones(3, 8, dtype=torch.int8),
        "weight_scale": torch.ones(3, 1),
        "bias": torch.zeros(3),
        "qmax": 127,
    }
    with pytest.raises(ConversionError, match=words):
        one(DynamicLinear("x", "y", **(fields | change)))
