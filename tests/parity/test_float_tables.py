"""Tables that ship as a float kernel between quantizers: the codes are those of the table, and no code is near a tie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch

from tests.programs import edge, program
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Edge, Table
from truequant.runtimes import EdgeReader, onnx_bytes
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnxruntime.float_tables import FLOAT_KERNELS, float_kernel_of
from truequant.runtimes.onnxruntime.lint import lint
from truequant.runtimes.onnxruntime.session import Level

NUMPY: dict[str, Callable[[Any], Any]] = {
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1), "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "silu": lambda x: x / (1 + np.exp(-x)), "tanh": np.tanh,
}  # fmt: skip


def tabulated(function: str, x: Edge, y: Edge) -> IntegerProgram:
    """Entries by numpy, in float64."""
    values = (np.arange(x.qmin, x.qmax + 1) - x.zero_point) * x.scale
    codes = np.clip(np.rint(NUMPY[function](values) / y.scale) + y.zero_point, y.qmin, y.qmax)
    return program(Table("x", "y", torch.from_numpy(codes.astype(np.int16)), function), {"x": x, "y": y}, "x", rank=2)


def grids(function: str) -> list[IntegerProgram]:
    """Of reaches from 0.01 to 200, unsigned and signed."""
    made = []
    for reach in (0.01, 0.5, 3.1, 7.7, 41.0, 200.0):
        low, high = max(-reach, -2.0), reach if function in ("hardswish", "silu") else 1.0
        unsigned = edge(reach / 119.3, 128), edge((high - low) / 255.7, round(-255.7 * low / (high - low)))
        signed = (edge(end / 127, 0, (-128, 127)) for end in (reach, high))
        made += [tabulated(function, *unsigned), tabulated(function, *signed)]
    return made


@pytest.mark.parametrize("function", NUMPY)
def test_the_kernel_gives_every_code_at_every_level(function: str) -> None:
    taken = 0
    for p in grids(function):
        (node,) = p.nodes[1:-1]
        assert isinstance(node, Table)
        x, kernel = p.edges["x"], float_kernel_of(p, node)
        taken += kernel is not None
        codes = torch.arange(x.qmin, x.qmax + 1)
        values = ((codes - x.zero_point) * x.scale).float().reshape(2, 128)
        for layout in get_args(Layout):
            ops = [n.op_type for n in onnx.load_model_from_string(onnx_bytes(p, form=layout)).graph.node]
            assert ("GatherElements" in ops) == (kernel is None)
            assert kernel is None or kernel.op in ops
            assert bool(lint(p, form=layout).of("table"))
            for level in get_args(Level):
                found = EdgeReader(p, form=layout, level=level).codes(values)
                assert torch.equal(found["x"].reshape(-1).int(), codes.int())
                assert torch.equal(found["y"].reshape(-1).int(), node.entries.int())
    assert taken >= 6


def test_what_lies_near_a_tie_is_looked_up() -> None:
    """hardswish(x) = x above 3: every second code lies between two."""
    x, y = edge(0.25, 128), edge(0.5, 128)
    p = tabulated("hardswish", x, y)
    assert float_kernel_of(p, p.nodes[1]) is None  # type: ignore[arg-type]
    assert "GatherElements" in [n.op_type for n in onnx.load_model_from_string(onnx_bytes(p)).graph.node]
    moved = tabulated("hardswish", x, edge(0.503, 128))
    assert float_kernel_of(moved, moved.nodes[1]) is FLOAT_KERNELS["hardswish"]  # type: ignore[arg-type]


def test_a_table_of_that_name_with_other_entries_is_looked_up() -> None:
    p = tabulated("silu", edge(0.05, 100), edge(0.0401, 20))
    node: Any = p.nodes[1]
    assert float_kernel_of(p, node) is FLOAT_KERNELS["silu"]
    entries = node.entries.clone()
    entries[200] += 1
    other = program(Table("x", "y", entries, "silu"), dict(p.edges), "x", rank=2)
    assert float_kernel_of(other, other.nodes[1]) is None  # type: ignore[arg-type]
    codes = torch.arange(256)
    found = EdgeReader(other).codes(((codes - 100) * 0.05).float().reshape(2, 128))["y"]
    assert torch.equal(found.reshape(-1).int(), entries.int())


def test_wide_codes_are_looked_up() -> None:
    x, y = edge(0.05, 100), Edge(2.0**-10, 300, 0, 65535)
    codes = np.clip(np.rint(np.tanh((np.arange(256) - 100) * 0.05) * 1024) + 300, 0, 65535)
    node = Table("x", "y", torch.from_numpy(codes.astype(np.int32)), "tanh")
    p = program(node, {"x": x, "y": y}, "x", rank=1)
    assert float_kernel_of(p, node) is None
