"""Rule "xnnpack" is what LiteRT's XNNPACK kernels compute: all pairs of codes, round scales among the settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from truequant import numerics
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Add, Dequantize, Edge, Mul, Quantize, Sub
from truequant.integer.program import ProgramInput
from truequant.runtimes.litert import LitertEdges

CODES = torch.arange(-128, 128, dtype=torch.int8)
ROUND = ((0.5, 0, 0.25, 0, 0.5), (1.0, -128, 1.0, 127, 2.0), (0.125, 5, 0.125, -7, 0.125))
KINDS = {"add": Add, "sub": Sub, "mul": Mul}


def settings() -> list[tuple[float, int, float, int, float, int]]:
    """Scales and zero points of both operands, and the output's."""
    some = np.random.default_rng(0)
    found = [(*s, 3) for s in ROUND]
    for _ in range(6):
        a, b, y = (float(np.float32(2.0 ** some.uniform(-6, 0))) for _ in range(3))
        found.append((a, int(some.integers(-128, 128)), b, int(some.integers(-128, 128)), y, int(some.integers(-128, 128))))
    return found


def pairs(kind: str, sa: float, za: int, sb: float, zb: int, sy: float, zy: int) -> IntegerProgram:
    edges = {"a": Edge(sa, za, -128, 127), "b": Edge(sb, zb, -128, 127), "y": Edge(sy, zy, -128, 127)}
    fields = {"rule": "xnnpack", "low": -128, "high": 127}
    nodes = Quantize("x", "a"), Quantize("z", "b"), KINDS[kind]("a", "b", output="y", **fields), Dequantize("y", "v")
    inputs = tuple(ProgramInput(name, "float32", (None, 256)) for name in ("x", "z"))
    return IntegerProgram(inputs, nodes, edges, "v", "xnnpack")


def scalars(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(v, dtype=torch.float32) for v in values)


@pytest.mark.parametrize("kind", KINDS)
def test_all_pairs_of_codes(kind: str) -> None:
    a, b = CODES.repeat_interleave(256).reshape(256, 256), CODES.repeat(256).reshape(256, 256)
    for sa, za, sb, zb, sy, zy in settings():
        program = pairs(kind, sa, za, sb, zb, sy, zy)
        grids = [scalars(sa, za), scalars(sb, zb), scalars(sy, zy)]
        x, z = (numerics.dequantize(q, *grid) for q, grid in zip((a, b), grids, strict=False))
        rule = getattr(numerics, kind)
        wanted = rule(a.float(), b.float(), *grids, -128, 127, "xnnpack")
        found = LitertEdges(program).codes(x, z)
        assert torch.equal(found["a"], a)
        assert torch.equal(found["b"], b)
        assert torch.equal(found["y"], wanted.to(torch.int8)), (kind, sa, za, sb, zb, sy, zy)


def test_the_average_is_that_of_a_depthwise_layer() -> None:
    sx, sy = scalars(0.37, 0.11)
    factor = numerics.global_average_factor(sx, sy, 49, "xnnpack")
    third = np.float32(1) / np.float32(49)
    assert factor.item() == np.float32(np.float32(0.37) * third) / np.float32(0.11)
    counts = range(2, 400)
    assert any(
        numerics.global_average_factor(sx, sy, n, "xnnpack") != numerics.global_average_factor(sx, sy, n) for n in counts
    )
