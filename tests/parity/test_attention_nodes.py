"""Softmax and attention as nodes: the oracle, the program and onnxruntime compute the same codes, for every pair and length."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import truequant as tq
from tests import oracle_rows
from tests.agreement import agree
from tests.emulation import WITHOUT_VNNI, differences, needs_qemu
from tests.programs import edge, random_codes, values_of
from truequant import numerics
from truequant.errors import ConversionError
from truequant.integer import IntegerProgram, ProgramInput
from truequant.integer.nodes import Attend, Dequantize, Edge, Node, Quantize, Softmax
from truequant.runtimes import EdgeReader
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnxruntime.session import Level

FORMS: tuple[Layout, ...] = ("qdq", "qoperator")
LEVELS: tuple[Level, ...] = ("none", "basic", "extended", "all")
MASK = Edge(edge(1 / 255).scale, 0, 0, 255)


def table(scale: float, *, bits: int | None = None) -> Tensor:
    found = numerics.exponentials(torch.tensor(scale), 256, 255 if bits is None else 2**bits)
    return found.to(torch.uint8 if bits is None else torch.int32)


def of_scores(node: Node, grids: dict[str, Edge], codes: dict[str, Tensor]) -> tuple[IntegerProgram, dict[str, Tensor]]:
    """One node between the quantizers of what it reads, and what it is fed with."""
    inputs = tuple(ProgramInput(f"{name}.value", "float32", tuple(c.shape)) for name, c in codes.items())
    before = tuple(Quantize(f"{name}.value", name) for name in codes)
    last = (Dequantize("y", "y.value"),) if "y" in grids else ()
    whole = IntegerProgram(inputs, (*before, node, *last), grids, "y.value" if last else "y", "onnxruntime")
    return whole, {f"{name}.value": values_of(c, grids[name]) for name, c in codes.items()}


def everywhere(program: IntegerProgram, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    """The program's codes, equal in both forms at four optimization levels, with one thread and with two."""
    found = tq.Int8Model(program).codes(*feeds.values())
    for form in FORMS:
        for level in LEVELS:
            for threads in (1, 2) if level == "all" else (1,):
                reader = EdgeReader(program, form=form, level=level, threads=threads)
                shipped = reader.codes(*feeds.values())
                for name in found:
                    assert torch.equal(found[name].int(), shipped[name].int()), (form, level, threads, name)
    return found


def rows_of(length: int, generator: torch.Generator, *leading: int) -> Tensor:
    """Rows of codes of several widths below the largest, of one code, and of one place above the rest."""
    codes = random_codes((*leading, 9, length), edge(), generator)
    spread = torch.tensor([1, 5, 30, 120, 255])[torch.arange(9) % 5].reshape(9, 1)
    codes = 255 - codes * spread // 255
    codes[..., 6, :], codes[..., 7, :] = 255, 0
    codes[..., 8, :] = 0
    codes[..., 8, length // 2] = 255
    return codes


# -- tables ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [1e-4, 0.0137, 0.05, 0.31, 2**-5, 3.0])
@pytest.mark.parametrize("largest", [255, 2**8, 2**12, 2**16])
def test_exponentials(scale: float, largest: int) -> None:
    step = torch.tensor(scale)
    assert numerics.exponentials(step, 256, largest).long().tolist() == oracle_rows.exponentials(float(step), 256, largest)


@pytest.mark.parametrize("scale", [0.0137, 0.6])
def test_all_pairs_of_a_largest_code_and_a_code(scale: float) -> None:
    """A row for each pair: the largest code, a code below it, and a third one."""
    largest, below = (grid.reshape(-1) for grid in torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"))
    kept = below <= largest
    codes = torch.stack([largest, below, largest // 2], 1)[kept]
    node = Softmax("x", (), None, False, "y", table(scale, bits=16), 1.0, 0, 255)
    program, feeds = of_scores(node, {"x": edge(scale, 7), "y": edge(1 / 256)}, {"x": codes})
    everywhere(program, feeds)
    agree_on(node, {"x": edge(scale, 7), "y": edge(1 / 256)}, {"x": codes[::97]})


def agree_on(node: Node, grids: dict[str, Edge], codes: dict[str, Tensor]) -> None:
    """The program and the oracle."""
    program, feeds = of_scores(node, grids, codes)
    agree(program, **feeds)


# -- nodes -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [1, 2, 33, 197, 512, 4096])
def test_softmax_of_every_length(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    bits = max(8, min(16, 24 - (length - 1).bit_length()))
    codes = rows_of(length, generator, 1)
    for scale, written in ((0.02, edge(1 / 256)), (0.15, edge(2**-7, 3))):
        node = Softmax("x", (), None, False, "y", table(scale, bits=bits), 1.0, 0, 250)
        grids = {"x": edge(scale, 100), "y": written}
        everywhere(*of_scores(node, grids, {"x": codes}))
        agree_on(node, grids, {"x": codes[:, ::3] if length > 512 else codes})


@pytest.mark.parametrize("length", [1, 2, 33, 197, 512])
@pytest.mark.parametrize("masked", ["", "edge", "stored", "causal", "all"])
def test_weights_times_values(length: int, masked: str) -> None:
    generator = torch.Generator().manual_seed(length)
    rows, values = rows_of(length, generator, 2, 2), random_codes((2, 2, length, 3), edge(), generator)
    values[..., 0], values[0, 0, :, 1] = 255, 0
    shown = torch.rand(1 if masked == "all" else 9, length, generator=generator) < 0.6
    shown[-1] = False  # a row that sees nothing
    edges = ("m",) if masked in ("edge", "all") else ()
    stored = (torch.rand(2, 1, 9, length, generator=generator) < 0.8).to(torch.uint8) * 255
    grids = {"x": edge(0.07, 31), "v": edge(0.03, 113), "y": edge(0.02, 128), "m": MASK}
    codes = {"x": rows, "v": values} | ({"m": shown.int() * 255} if edges else {})
    node = Attend(
        "x", edges, stored if masked in ("stored", "all") else None, masked in ("causal", "all"), "y", table(0.07), 1.0, "v", 0,
        255,
    )  # fmt: skip
    grids = {name: grid for name, grid in grids.items() if name in codes or name == "y"}
    found = everywhere(*of_scores(node, grids, codes))
    if length <= 197:
        agree_on(node, grids, codes)
    if masked in ("edge", "all"):
        assert bool((found["y"][:, :, -1] == 128).all()), "zeros, where nothing is seen"


def test_weights_as_values() -> None:
    codes = rows_of(33, torch.Generator().manual_seed(0), 2)
    node = Softmax("x", (), None, True, "y", table(0.07).int(), 1.0, 0, 0)
    program, feeds = of_scores(node, {"x": edge(0.07)}, {"x": codes})
    agree(program, **feeds)
    expected = tq.Int8Model(program)(*feeds.values())
    for form in FORMS:
        assert torch.equal(tq.compile(program, "onnxruntime", form=form)(*feeds.values()), expected)


def test_sums_beyond_2_to_the_24_are_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = {"x": random_codes((1, 2, 3001), edge(), generator), "v": random_codes((1, 3001, 5), edge(), generator)}
    codes["x"][0, 0], codes["v"][0, :, 0] = 255, 255
    grids = {"x": edge(0.001, 31), "v": edge(0.03, 0), "y": edge(0.0301, 0)}
    node = Attend("x", (), None, False, "y", table(0.001), 1.0, "v", 0, 255)
    everywhere(*of_scores(node, grids, codes))
    agree_on(node, grids, codes)


def test_sums_beyond_int32_are_refused() -> None:
    node = Attend("x", (), None, False, "y", table(0.01), 1.0, "v", 0, 255)
    codes = {"x": torch.zeros(1, 1, 34_000, dtype=torch.int64), "v": torch.zeros(1, 34_000, 1, dtype=torch.int64)}
    program, feeds = of_scores(node, {"x": edge(), "v": edge(), "y": edge()}, codes)
    with pytest.raises(ConversionError, match="an accumulator may leave int32"):
        tq.Int8Model(program)(*feeds.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"table": torch.zeros(256, dtype=torch.uint8)}, "its table is none of exponentials"),
     ({"table": torch.arange(256).to(torch.uint8)}, "its table is none of exponentials"),
     ({"table": torch.full((255,), 3, dtype=torch.uint8)}, "table of a wrong shape"),
     ({"table": torch.full((256,), 3, dtype=torch.int32)}, "table has a wrong dtype"),
     ({"factor": math.inf}, "a factor that cannot be"), ({"factor": 0.0}, "a factor that cannot be"),
     ({"shown": torch.ones(4)}, "shown has a wrong dtype"), ({"low": -1}, "clamped to codes that its edge lacks"),
     ({"y": edge(1e30)}, "scales too far apart"), ({"v": edge(1.0, 0, (-128, 127))}, "values are unsigned codes"),
     ({"x": edge(1.0, 0, (-128, 127))}, "scores and masks are unsigned codes")],
)  # fmt: skip
def test_what_a_file_may_not_say(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "scores": "x", "masks": (), "shown": None, "causal": False, "output": "y", "table": table(0.1), "factor": 1.0,
        "values": "v", "low": 0, "high": 255,
    }  # fmt: skip
    grids = {"x": edge(), "v": edge(1e-10), "y": edge()} | {k: v for k, v in changes.items() if isinstance(v, Edge)}
    node = Attend(**{**fields, **{k: v for k, v in changes.items() if not isinstance(v, Edge)}})
    with pytest.raises(ConversionError, match=message):
        node.check(grids)


def test_shapes_that_do_not_fit() -> None:
    node = Attend("x", ("m",), None, False, "y", table(0.1), 1.0, "v", 0, 255)
    assert node.output_shape([(2, 3, 4), (2, 4, 5), (1, 4)]) == (2, 3, 5)
    with pytest.raises(ConversionError, match="cannot multiply its inputs"):
        node.output_shape([(2, 3, 4), (4, 5), (1, 4)])
    with pytest.raises(ConversionError, match="a mask of scores"):
        node.output_shape([(2, 3, 4), (2, 4, 5), (6, 2, 3, 4)])


@pytest.mark.emulated
@needs_qemu
def test_on_a_cpu_without_vnni(tmp_path: Path) -> None:
    """Bytes times bytes, at their ends: no pair of products saturates."""
    generator = torch.Generator().manual_seed(0)
    grids = {"x": edge(0.004, 31), "v": edge(0.03, 128), "y": edge(0.02, 128)}
    codes = {"x": rows_of(197, generator, 2), "v": random_codes((2, 197, 24), edge(), generator)}
    codes["x"][0], codes["v"][0, :, :8], codes["v"][0, :, 8:16] = 255, 255, 0
    cases = {}
    for name, node in (
        ("attend", Attend("x", (), None, True, "y", table(0.004), 1.0, "v", 0, 255)),
        ("softmax", Softmax("x", (), None, False, "y", table(0.004, bits=16), 1.0, 0, 255)),
    ):
        used = {n: c for n, c in codes.items() if n in node.reads}
        program, feeds = of_scores(node, {n: g for n, g in grids.items() if n in (*used, "y")}, used)
        cases[name] = program, tuple(feeds.values())
    assert {name: different for name, (_, different) in differences(WITHOUT_VNNI, cases, tmp_path).items()} == {
        "attend": {}, "softmax": {},
    }  # fmt: skip


# -- whole models ------------------------------------------------------------------------------------------------------
