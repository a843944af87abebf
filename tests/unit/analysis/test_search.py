"""Search: budgets hold, equal arguments give equal configs, an interrupted search goes on, and mixed bits beat uniform ones."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.analysis.search import Space
from truequant.errors import ArgumentError, FileError, SchemeError
from truequant.schemes import int16, uint16

TYPES = (tq.types.int2, tq.types.int4, tq.types.int8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
        self.up, self.fc = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Linear(4, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3))
        return self.head(F.relu(self.fc(x)))


WEIGHTS = {"a": 144, "b": 288, "up": 128, "fc": 256, "head": 256}


def size(model: nn.Module, x: Tensor, config: tq.QConfig) -> float:
    plan = tq.plan(model, x, config)
    return sum(WEIGHTS[q.owner] * q.scheme.dtype.bits / 8 for q in plan.quantizers if q.kind == "weight")


def loss(model: nn.Module, x: Tensor, config: tq.QConfig) -> float:
    return tq.sensitivity(tq.calibrate(tq.prepare(model, x, config), [x]), [x]).quantized


def test_the_facts_of_layers() -> None:
    x = torch.randn(3, 2, 8, 8)
    layers = {one.facts.name: one.facts for one in Space(Net(), x, tq.QConfig(), TYPES, (tq.types.uint8,)).layers}
    assert {n: f.weights for n, f in layers.items()} == WEIGHTS
    counts = {n: f.multiply_accumulates for n, f in layers.items()}
    assert counts == {"a": 144 * 36, "b": 288 * 16, "up": 128 * 16, "fc": 256, "head": 256}


@pytest.mark.parametrize("limit", [400.0, 600.0, 800.0])
def test_size_holds_and_mixed_widths_beat_uniform_ones(limit: float) -> None:
    model, x = Net().eval(), torch.randn(64, 2, 8, 8)
    config = tq.search(model, x, [x], tq.methods.Size(limit))
    assert size(model, x, config) <= limit
    assert config == tq.search(model, x, [x], tq.methods.Size(limit))
    uniform = []
    for dtype in TYPES:
        same = tq.QConfig(weight=tq.QuantScheme(dtype, tq.PerChannel(0)))
        if size(model, x, same) <= limit:
            uniform.append(loss(model, x, same))
    assert loss(model, x, config) <= 1.05 * min(uniform)
    qat = tq.calibrate(tq.prepare(model, x, config), [x])
    assert tq.verify(qat, tq.convert(qat), [x], runtimes=["reference"]).codes_different == 0


def test_multiply_accumulates_with_activations_too() -> None:
    model, x = Net().eval(), torch.randn(64, 2, 8, 8)
    macs = {"a": 144 * 36, "b": 288 * 16, "up": 128 * 16, "fc": 256, "head": 256}
    limit = 0.3 * sum(macs.values())
    config = tq.search(model, x, [x], tq.methods.MultiplyAccumulates(limit), activations=(tq.types.uint4, tq.types.uint8))
    plan = tq.plan(model, x, config)
    spent = 0.0
    for site in plan.sites:
        if site.weight is not None and site.reads[0] is not None:
            bits = plan.quantizer(site.weight).scheme.dtype.bits, plan.quantizer(site.reads[0]).scheme.dtype.bits
            spent += macs[site.name] * bits[0] * bits[1] / 64
    assert spent <= limit
    assert {q.scheme.dtype.bits for q in plan.quantizers if q.kind == "activation"} <= {4, 8}
    assert all(q.scheme.dtype.bits == 8 for q in plan.quantizers if q.kind in ("input", "output"))


def test_what_the_default_narrows_stays_narrow() -> None:
    """With all the room there is, the widest weights are those of the plan; a config that keeps 8 bits has 8."""
    model, x = Net().eval(), torch.randn(64, 2, 8, 8)
    for config, bits in (("int8", {7}), ("w8a8", {8})):
        found = tq.search(model, x, [x], tq.methods.Size(10_000), config=config)
        assert {q.scheme.dtype.bits for q in tq.plan(model, x, found).quantizers if q.kind == "weight"} == bits


def test_latency_is_what_the_function_says() -> None:
    model, x = Net().eval(), torch.randn(64, 2, 8, 8)
    config = tq.search(model, x, [x], tq.methods.Latency(1.5, lambda f, w, a: 1.0 if f.name == "b" and w == 8 else 0.1 * w / 4))
    assert tq.plan(model, x, config).quantizer("b.weight").scheme.dtype.bits < 8


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    model, x, path = Net().eval(), torch.randn(32, 2, 8, 8), tmp_path / "search.json"
    y = torch.randint(0, 4, (32,))
    calls = 0

    def metric(outputs: Any, item: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, item[1]).item()

    stop = 8
    with pytest.raises(KeyboardInterrupt):
        tq.search(model, x, [(x, y)], tq.methods.Size(500), metric, path=path)
    assert len(json.loads(path.read_text())["losses"]) == 7
    stop = 0
    calls = 0
    config = tq.search(model, x, [(x, y)], tq.methods.Size(500), metric, path=path)
    assert calls == 1 + 3 * 5 - 7
    again = tq.search(model, x, [(x, y)], tq.methods.Size(700), metric, path=path)  # another budget measures nothing anew
    assert calls == 1 + 3 * 5 - 7
    assert size(model, x, again) >= size(model, x, config)
    assert config == tq.search(model, x, [(x, y)], tq.methods.Size(500), metric)


def test_a_file_of_another_search_or_of_something_else_is_refused(tmp_path: Path) -> None:
    model, x, path = Net().eval(), torch.randn(32, 2, 8, 8), tmp_path / "search.json"
    tq.search(model, x, [x], tq.methods.Size(500), path=path)
    before = path.read_bytes()
    with pytest.raises(FileError, match="the evaluations of another search"):
        tq.search(model, x, [x + 1], tq.methods.Size(500), path=path)
    with torch.no_grad():
        model.a.weight += 1
    with pytest.raises(FileError, match="the evaluations of another search"):
        tq.search(model, x, [x], tq.methods.Size(500), path=path)
    assert path.read_bytes() == before
    for text in ("[]", "{", '{"losses": 3}', '{"identity": "x", "losses": {}}'):
        path.write_text(text)
        with pytest.raises(FileError):
            tq.search(model, x, [x], tq.methods.Size(500), path=path)
    identity = json.loads(before)["identity"]
    path.write_text(json.dumps({"identity": identity, "losses": {"float": "zero"}}))
    with torch.no_grad():
        model.a.weight -= 1
    with pytest.raises(FileError):
        tq.search(model, x, [x], tq.methods.Size(500), path=path)


def test_rules_stay_and_impossible_budgets_are_named() -> None:
    model, x = Net().eval(), torch.randn(32, 2, 8, 8)
    config = tq.search(model, x, [x], tq.methods.Size(300), config=tq.QConfig().with_rules(tq.Rule("head", None)))
    plan = tq.plan(model, x, config)
    assert "head" in [s.name for s in plan.in_float()]
    with pytest.raises(ArgumentError, match=r"search: Size\(100\) cannot be met"):
        tq.search(model, x, [x], tq.methods.Size(100))
    with pytest.raises(ArgumentError, match="no widths"):
        tq.search(model, x, [x], tq.methods.Size(100), weights=())


class Small(nn.Module):
    """Two layers between which an activation lies, and one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


@pytest.mark.parametrize("part", [0.14, 0.3, 0.6, 1.2, 2.1])
def test_widths_from_2_to_16_bits_against_all_assignments(part: float, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, x = Small().eval(), torch.randn(64, 6)
    weights, activations = (
        (tq.types.int2, tq.types.int4, tq.types.int8),
        (tq.types.uint2, tq.types.uint4, tq.types.uint8, uint16),
    )
    macs, reads = {"a": 48, "b": 64, "c": 24}, {"b": "relu_0", "c": "relu_1"}
    limit = part * sum(macs.values())
    options: Any = {"weights": weights, "activations": activations, "path": tmp_path / "search.json", "config": "w8a8"}
    config = tq.search(model, x, [x], tq.methods.MultiplyAccumulates(limit), **options)
    losses = json.loads((tmp_path / "search.json").read_text())["losses"]

    def cost(w: dict[str, int], a: dict[str, int]) -> float:
        return sum(n * w[layer] * (a[reads[layer]] if layer in reads else 8) / 64 for layer, n in macs.items())

    def added(w: dict[str, int], a: dict[str, int]) -> float:
        found = [losses[f"{layer}.weight int{bits}"] for layer, bits in w.items()]
        return sum(found) + sum(losses[f"{edge} uint{bits}"] for edge, bits in a.items())

    best = min(
        added(w, a)
        for one in itertools.product((2, 4, 8), repeat=3)
        for two in itertools.product((2, 4, 8, 16), repeat=2)
        if cost(w := dict(zip("abc", one, strict=True)), a := dict(zip(("relu_0", "relu_1"), two, strict=True))) <= limit
    )
    plan = tq.plan(model, x, config)
    w = {layer: plan.quantizer(f"{layer}.weight").scheme.dtype.bits for layer in macs}
    a = {edge: plan.quantizer(edge).scheme.dtype.bits for edge in ("relu_0", "relu_1")}
    assert cost(w, a) <= limit
    assert added(w, a) <= best * 1.02 + 1e-9
    assert (16 in a.values()) == (part > 1)
    qat = tq.calibrate(tq.prepare(model, x, config), [x])
    assert tq.verify(qat, tq.convert(qat), [x], runtimes=["reference"]).codes_different == 0


def test_widths_that_cannot_be_had_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    model, x, path = Small().eval(), torch.randn(8, 6), tmp_path / "search.json"
    with pytest.raises(ArgumentError, match="weights of more than 8 bits have no integer kernel"):
        tq.search(model, x, [x], tq.methods.Size(500), weights=(tq.types.int8, int16), path=path)
    config = tq.QConfig().for_target("xnnpack")
    with pytest.raises(SchemeError, match="no weights of 4 bits"):
        tq.search(model, x, [x], tq.methods.Size(500), config=config, weights=(tq.types.int4, tq.types.int8), path=path)
    assert not path.exists()
