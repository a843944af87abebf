"""Norms of codes: evaluation, the program and both forms of file in onnxruntime at every level, on every bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.emulation import WITHOUT_FMA, WITHOUT_VNNI, differences, needs_qemu
from tests.programs import S8, edge, program, values_of
from truequant.errors import ConversionError, ExportError
from truequant.integer import Int8Model, IntegerProgram
from truequant.integer.nodes import Normalize
from truequant.runtimes import onnx_bytes
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnxruntime import norm_proofs
from truequant.runtimes.onnxruntime.census import optimized
from truequant.runtimes.onnxruntime.norm_proofs import awkward, require_exact_norms
from truequant.runtimes.onnxruntime.session import Level, run, session

LEVELS: tuple[Level, ...] = get_args(Level)
FUSED = ("LayerNormalization", "SimplifiedLayerNormalization", "GroupNorm", "InstanceNormalization", "RMSNormalization",
         "SkipLayerNormalization", "LpNormalization", "BatchNormalization")  # fmt: skip
U16 = (0, 65535)
Shape = tuple[int, ...]


def made(
    kind: str, shape: Shape, axes: Shape = (-1,), groups: int = 0, *, plain: bool = False, codes: tuple[int, int] = (0, 255),
    zero_point: int = 117, clamped: bool = False, outside: bool = False, correction: int = 0, value: bool = False,
) -> tuple[IntegerProgram, Tensor]:  # fmt: skip
    """A program of one norm, and values that quantize to awkward codes."""
    generator = torch.Generator().manual_seed(2)
    x, y = edge(7.9 / (codes[1] - codes[0]), zero_point, codes), edge(6.1 / (codes[1] - codes[0]), codes[0] + 100, codes)
    sizes = (shape[1],) if kind == "group" else tuple(shape[axis] for axis in axes)
    gain = None if plain or kind == "l2" else torch.randn(sizes, generator=generator)
    bias = None if plain or kind in ("rms", "l2") else torch.randn(sizes, generator=generator)
    low, high = (codes[0] + 7, codes[1] - 9) if clamped else codes
    axes = () if kind == "group" else axes
    node = Normalize("x", "y", kind, axes, groups, 1e-5, outside, correction, gain, bias, low, high)  # type: ignore[arg-type]
    p = program(node, {"x": x} if value else {"x": x, "y": y}, "x", rank=len(shape))
    p = dataclasses.replace(p, inputs=(dataclasses.replace(p.inputs[0], shape=(None, *shape[1:])),))
    return p, values_of(awkward(x, shape), x)


CASES: dict[str, tuple[IntegerProgram, Tensor]] = {
    "layer": made("layer", (10, 3, 64)),
    "layer of two axes": made("layer", (10, 6, 16), (-2, -1)),
    "layer of channels": made("layer", (10, 12, 3, 5), (-3,)),
    "layer without gain": made("layer", (10, 33), plain=True, clamped=True),
    "layer of parts": made("layer", (10, 1536), zero_point=0),
    "layer of a prime": made("layer", (10, 2, 1031), zero_point=0),
    "layer of signed codes": made("layer", (10, 40), codes=S8, zero_point=-3),
    "layer, unbiased, eps outside": made("layer", (10, 48), outside=True, correction=1),
    "layer of 16 bits": made("layer", (10, 300), codes=U16, zero_point=31000),
    "layer as a value": made("layer", (10, 3, 64), value=True),
    "rms": made("rms", (10, 3, 64)),
    "rms of rows": made("rms", (10, 64), clamped=True),
    "rms of parts": made("rms", (10, 4096)),
    "rms without gain": made("rms", (10, 5, 2, 16), plain=True),
    "rms of channels": made("rms", (10, 12, 3, 5), (-3,)),
    "rms of 16 bits": made("rms", (10, 300), codes=U16, zero_point=31000),
    "rms as a value": made("rms", (10, 3, 64), value=True),
    "l2": made("l2", (10, 3, 64)),
    "l2 of channels": made("l2", (10, 12, 3, 5), (-3,)),
    "l2 as a value": made("l2", (10, 64), value=True),
    "group": made("group", (10, 12, 5, 7), groups=3),
    "group without gain": made("group", (10, 12, 4, 4), groups=4, plain=True),
    "group of parts": made("group", (6, 4, 96, 160), groups=2, zero_point=0, value=True),
    "group of vectors": made("group", (10, 24), groups=3),
    "group as a value": made("group", (10, 12, 9), groups=3, value=True),
    "instance": made("group", (10, 6, 31), groups=6),
    "instance without gain": made("group", (10, 6, 31), groups=6, plain=True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_both_forms_at_every_level(name: str) -> None:
    p, x = CASES[name]
    wanted = Int8Model(p)(x)
    assert bool(torch.isfinite(wanted).all())
    for layout in get_args(Layout):
        data = onnx_bytes(p, form=layout)
        for level in LEVELS:
            found = run(session(data, level=level, threads=1 + (level == "all")), {"x.value": x})
            assert torch.equal(found["y.value" if "y" in p.edges else "y"], wanted), (layout, level)
        (nothing,) = run(session(data), {"x.value": x[:0]}).values()
        assert nothing.shape == wanted[:0].shape


@pytest.mark.parametrize("name", CASES)
def test_no_level_makes_another_kernel_of_a_step(name: str) -> None:
    """Each op of the file that computes is there after optimization; nothing fused is."""
    p, _ = CASES[name]
    data = onnx_bytes(p, form="qdq")
    counts = [_computing(optimized(data, level)) for level in LEVELS]
    assert all(count == counts[0] for count in counts), counts
    assert not set(counts[0]) & set(FUSED)


def _computing(graph: object) -> dict[str, int]:
    ops = [node.op_type for node in graph.node]  # type: ignore[attr-defined]
    moving = ("Reshape", "Identity", "DequantizeLinear", "Shape", "Constant", "Expand", "Cast")
    return {op: ops.count(op) for op in sorted(set(ops)) if op not in moving}


@pytest.mark.parametrize("name", ["layer", "rms", "l2", "group", "layer of two axes", "rms of channels"])
def test_sizes_of_any_length(name: str) -> None:
    p, x = CASES[name]
    (given,) = p.inputs
    kind = p.nodes[1]
    assert isinstance(kind, Normalize)
    first = 2 if kind.kind == "group" else len(given.shape) + min(kind.axes)
    free = [*(None,) * first, *given.shape[first:]]
    if kind.kind == "group":
        free = [None, given.shape[1], None, None]
    p = dataclasses.replace(p, inputs=(dataclasses.replace(given, shape=tuple(free)),))
    active = session(onnx_bytes(p, form="qdq"))
    assert torch.equal(run(active, {"x.value": x})["y.value"], Int8Model(p)(x))
    larger = torch.cat([x, x.flip(0)])
    larger = torch.cat([larger, larger], 2) if kind.kind == "group" else larger
    assert torch.equal(run(active, {"x.value": larger})["y.value"], Int8Model(p)(larger))


class Norms(nn.Module):
    """Modules and functions, between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(24, 24) for _ in range(5))
        self.layer, self.rms, self.plain = nn.LayerNorm(24), nn.RMSNorm(24), nn.LayerNorm(24, elementwise_affine=False)
        self.several = nn.LayerNorm((5, 24))
        for parameter in (*self.layer.parameters(), *self.rms.parameters(), *self.several.parameters()):
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.a(x))
        x = x + self.rms(self.b(x))
        x = self.several(x + self.plain(self.c(x)))
        return self.e(F.normalize(self.d(x), dim=-1)) + F.layer_norm(x, (24,))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, 12, 3, padding=1) for n in (3, 12, 12, 12))
        self.group, self.instance, self.affine = nn.GroupNorm(3, 12), nn.InstanceNorm2d(12), nn.InstanceNorm2d(12, affine=True)
        for parameter in (*self.group.parameters(), *self.affine.parameters()):
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.a(x)).relu()
        x = self.affine(self.b(x)) + self.instance(self.c(x))
        return F.normalize(self.d(x))


class Leaving(nn.Module):
    """A norm behind which no grid follows: its result leaves as values."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(24, 24), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x))[:, 0]


def trained(model: nn.Module, x: Tensor, config: tq.QConfig | str | None = None) -> nn.Module:
    qat = tq.prepare(model, x, config)
    tq.calibrate(qat, [x])
    optimizer = torch.optim.SGD(qat.train().parameters(), 0.01)
    qat(x).square().mean().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in qat.parameters())
    optimizer.step()
    return qat.eval()


@pytest.mark.parametrize("preset", ["int8", "w8a8", "w8a8-pow2", "w4a8"])
@pytest.mark.parametrize("kind", [Norms, Images])
def test_models_are_exact(kind: type[nn.Module], preset: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 24) if kind is Norms else torch.randn(2, 3, 7, 6)
    qat = trained(kind(), x, preset)
    int8 = tq.convert(qat)
    ops = int8.ops()
    assert ops["Normalize"] == (6 if kind is Norms else 4)
    assert "Island" not in ops
    report = tq.assert_exact(qat, int8, [x, torch.randn(1, *x.shape[1:]) * 3])
    assert report.codes_compared > 0


@pytest.mark.parametrize("norm", [nn.LayerNorm(24), nn.RMSNorm(24)])
def test_a_result_that_leaves_as_values_is_exact(norm: nn.Module) -> None:
    x = torch.randn(3, 5, 24)
    qat = trained(Leaving(norm), x, dataclasses.replace(tq.QConfig.preset("int8"), output=None))
    int8 = tq.convert(qat)
    assert int8.ops()["Normalize"] == 1
    assert "Island" not in int8.ops()
    tq.assert_exact(qat, int8, [x, torch.randn(2, 5, 24)])


def test_a_rule_leaves_the_runtimes_own_kernel() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 24)
    config = dataclasses.replace(tq.QConfig.preset("int8"), rules=(tq.Rule(nn.LayerNorm, None), tq.Rule(nn.RMSNorm, None)))
    decided = tq.plan(Norms(), x, config)
    assert {decided.site(name).action for name in ("layer", "rms", "plain", "several")} == {"float"}
    assert decided.site("normalize_0").action == decided.site("layer_norm_0").action == "normalize"
    int8 = tq.convert(trained(Norms(), x, config))
    assert int8.ops()["Island"] == 4
    assert "LayerNormalization" in {node.op_type for node in optimized(onnx_bytes(int8.program), "none").node}


@pytest.mark.parametrize("name", ["layer", "rms of rows", "l2", "group", "layer of channels"])
def test_openvino_is_near_and_never_called_exact(name: str) -> None:
    pytest.importorskip("openvino")
    p, x = CASES[name]
    (report,) = tq.verify(None, p, [x], runtimes=["openvino"]).runtimes.values()
    assert report.float_sums == ("y",)
    assert report.max_difference <= 1
    assert report.grade in ("WITHIN 1", "EXACT BETWEEN ISLANDS")
    assert report.exact_between_islands


@pytest.mark.parametrize(
    "name", ["layer", "layer of channels", "layer, unbiased, eps outside", "rms", "rms of channels", "l2", "group"]
)
def test_torch_export_is_near(name: str) -> None:
    p, x = CASES[name]
    (report,) = tq.verify(None, p, [x], runtimes=["torch.export"]).runtimes.values()
    assert report.max_difference <= 2


def test_export_proves_norms_and_says_which_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    p, _ = CASES["layer"]
    compared = require_exact_norms(p, lambda q: onnx_bytes(q, show_edges=True))
    assert compared == norm_proofs.ROWS * 64

    def other(q: IntegerProgram) -> bytes:
        nodes = [dataclasses.replace(n, eps=1e-2) if isinstance(n, Normalize) else n for n in q.nodes]
        return onnx_bytes(dataclasses.replace(q, nodes=tuple(nodes)), show_edges=True)

    with pytest.raises(ExportError, match="'y': onnxruntime computes another layer norm") as error:
        require_exact_norms(p, other)
    assert "Rule('y', None) leaves it to the runtime's own kernel" in str(error.value)
    called: list[IntegerProgram] = []
    monkeypatch.setattr("truequant.runtimes.onnxruntime.dialect.require_exact_norms", lambda q, write: called.append(q))
    tq.export_onnx(Int8Model(p), tmp_path / "norm.onnx")
    assert called == [p]


BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "kind": ({"kind": "batch"}, "Normalize 'y': no such norm"),
    "axes": ({"axes": (0,)}, "Normalize 'y': impossible axes or groups"),
    "twice": ({"axes": (-1, -1)}, "Normalize 'y': impossible axes or groups"),
    "groups": ({"groups": 2}, "Normalize 'y': impossible axes or groups"),
    "eps": ({"eps": -1e-5}, "Normalize 'y': impossible eps"),
    "nan": ({"eps": float("nan")}, "Normalize 'y': impossible eps"),
    "correction": ({"correction": 2}, "Normalize 'y': impossible deviation"),
    "gain": ({"gain": torch.ones(3, 3)}, "Normalize 'y': gain of a wrong shape"),
    "dtype": ({"gain": torch.ones(64).double()}, "Normalize 'y': gain has a wrong dtype"),
    "bias": ({"bias": torch.ones(63)}, "Normalize 'y': bias of a wrong shape"),
    "infinite": ({"gain": torch.full((64,), float("inf"))}, "Normalize 'y': gain or bias too large for float32"),
    "unknown": ({"bias": torch.full((64,), float("nan"))}, "Normalize 'y': gain or bias too large for float32"),
    "clamp": ({"high": 256}, "Normalize 'y': clamped to codes that its edge lacks"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_nodes_that_cannot_be(name: str) -> None:
    changes, text = BROKEN[name]
    p, _ = CASES["layer"]
    nodes = tuple(dataclasses.replace(n, **changes) if isinstance(n, Normalize) else n for n in p.nodes)
    with pytest.raises(ConversionError) as error:
        dataclasses.replace(p, nodes=nodes)
    assert text in str(error.value)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 65), (2, 3, 0)])
def test_inputs_that_do_not_fit(shape: Shape) -> None:
    node = CASES["layer"][0].nodes[1]
    with pytest.raises(ConversionError, match="Normalize 'y' cannot read its input"):
        node.output_shape([shape])


def test_a_file_holds_norms(tmp_path: Path) -> None:
    for name, (p, x) in CASES.items():
        Int8Model(p).save(tmp_path / "norm.tq")
        assert torch.equal(tq.load(tmp_path / "norm.tq")(x), Int8Model(p)(x)), name


@pytest.mark.emulated
@needs_qemu
@pytest.mark.parametrize("cpu", [WITHOUT_VNNI, WITHOUT_FMA])
def test_the_same_codes_on_other_cpus(cpu: str, tmp_path: Path) -> None:
    names = ("layer", "layer of parts", "layer of 16 bits", "rms", "rms of parts", "l2", "group", "instance")
    found = differences(cpu, {name: (CASES[name][0], (CASES[name][1],)) for name in names}, tmp_path)
    assert all(different == {} for _, different in found.values())
    assert sum(compared for compared, _ in found.values()) > 40_000
