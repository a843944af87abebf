"""Layers and pools of any geometry: the reference equals the oracle, and torch where torch has integers' meaning."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.interpret import interpret
from tests.programs import edge, program, random_codes, random_conv, values_of
from truequant.integer import execute
from truequant.integer.nodes import MaxPool, Reshape
from truequant.numerics.pooling import pooled_length

QUICK = settings(max_examples=80, deadline=None, derandomize=True)


@QUICK
@given(st.data())
def test_convs(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    sizes = st.integers(1, 3)
    groups, per_group, out = data.draw(sizes), data.draw(sizes), data.draw(sizes)
    kernel = [data.draw(sizes) for _ in range(rank)]
    stride, dilation = data.draw(sizes), data.draw(sizes)
    padding = tuple((data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(rank))
    space = [data.draw(st.integers(1, 6)) for _ in range(rank)]
    assume(all(n + sum(p) >= dilation * (k - 1) + 1 for n, p, k in zip(space, padding, kernel, strict=True)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    node = random_conv(
        generator,
        "x",
        "y",
        (groups * out, per_group, *kernel),
        groups=groups,
        stride=stride,
        dilation=dilation,
        padding=padding,
    )
    edges = {"x": edge(0.03, data.draw(st.sampled_from([0, 77, 255]))), "y": edge(0.2, 100)}
    model = program(node, edges, "x", rank=rank + 2)
    codes = random_codes((data.draw(st.integers(0, 2)), groups * per_group, *space), edges["x"], generator)
    inputs = {"x.value": values_of(codes, edges["x"])}
    got, wanted = execute(model, inputs, {"y"})["y"], interpret(model, inputs)["y"]
    assert np.array_equal(got.numpy(), wanted)


@QUICK
@given(st.data())
def test_pools(data: st.DataObject) -> None:
    kernel, stride, dilation = (data.draw(st.integers(1, 4)) for _ in range(3))
    padding = data.draw(st.integers(0, kernel // 2))
    ceil_mode = data.draw(st.booleans())
    shape = (data.draw(st.integers(1, 2)), 2, data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    counts = [pooled_length(n, kernel, stride, padding, dilation, ceil_mode) for n in shape[2:]]
    assume(min(counts) > 0)
    x = edge(1.0, data.draw(st.sampled_from([0, 200])))
    codes = random_codes(shape, x, torch.Generator().manual_seed(0))
    node = MaxPool("x", "y", (kernel,) * 2, (stride,) * 2, (padding,) * 2, (dilation,) * 2, ceil_mode)
    model = program(node, {"x": x, "y": x}, "x")
    inputs = {"x.value": values_of(codes, x)}
    got = execute(model, inputs, {"y"})["y"]
    assert np.array_equal(got.numpy(), interpret(model, inputs)["y"])
    by_torch = torch.nn.functional.max_pool2d(codes.float(), kernel, stride, padding, dilation, ceil_mode)
    assert torch.equal(got.float(), by_torch.clamp(min=0))


@QUICK
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.lists(st.integers(-1, 4), min_size=1, max_size=4))
def test_reshapes(shape: list[int], target: list[int]) -> None:
    """Where no axis is empty, 0 and -1 mean what they mean in ONNX."""
    assume(0 not in shape and target.count(-1) <= 1)
    assume(all(axis < len(shape) for axis, size in enumerate(target) if size == 0))
    filled = [shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    try:
        wanted = tuple(torch.empty(shape).reshape(filled).shape)
    except RuntimeError:
        return
    assert Reshape("x", "y", tuple(target)).output_shape([tuple(shape)]) == wanted
