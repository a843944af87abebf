from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from tests.programs import S8, edge, program, random_codes, random_conv, random_linear, values_of
from truequant.errors import ConversionError
from truequant.integer import execute, storage
from truequant.integer.nodes import Conv, Edge, Linear, Node, layers


def run(node: Node, edges: dict[str, Edge], codes: Tensor) -> Tensor:
    model = program(node, edges, "x", rank=codes.dim())
    return execute(model, {"x.value": values_of(codes, edges["x"])}, {node.output})[node.output]


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_linear_by_hand() -> None:
    """acc = (2-1)*3 + (5-1)*(-2) + 10 = 5 and (2-1)*0 + (5-1)*1 - 10 = -6; M = 0.5*0.5/0.1 = 2.5."""
    node = Linear("x", "y", torch.tensor([[3, -2], [0, 1]], dtype=torch.int8), torch.tensor([0.5]), int32(10, -10), 0, 255)
    got = run(node, {"x": edge(0.5, 1), "y": edge(0.1, 20)}, torch.tensor([[2, 5]]))
    assert got.dtype == torch.uint8
    assert got.tolist() == [[32, 5]]  # rint(12.5) = 12, rint(-15.0) = -15


def test_conv_by_hand_pads_with_real_zero() -> None:
    """A kernel of ones over codes that all mean 1.0: a corner sees 4 of them, an edge 6, the middle 9."""
    ones = torch.ones(1, 1, 3, 3, dtype=torch.int8)
    for groups_of in (1, 2):  # the second has two channels and takes the other path
        weight = ones if groups_of == 1 else torch.cat([ones, torch.zeros_like(ones)], 1)
        node = Conv("x", "y", weight, torch.tensor([1.0]), int32(0), (1, 1), ((1, 1),) * 2, (1, 1), 1, -128, 127)
        codes = torch.full((1, groups_of, 3, 3), 8)
        got = run(node, {"x": edge(1.0, 7), "y": edge(1.0, -100, S8)}, codes)
        assert got.dtype == torch.int8
        assert got[0, 0].tolist() == [[-96, -94, -96], [-94, -91, -94], [-96, -94, -96]]


def test_depthwise_and_dense_paths_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    edges = {"x": edge(0.03, 99), "y": edge(0.3, 5)}
    depthwise = random_conv(generator, "x", "y", (4, 1, 3, 3), groups=4, stride=2, padding=1)
    dense = torch.zeros(4, 4, 3, 3, dtype=torch.int8)
    dense[range(4), range(4)] = depthwise.weight[:, 0]
    fields = (depthwise.weight_scale, depthwise.bias, (2, 2), ((1, 1),) * 2, (1, 1), 1, 0, 255)
    codes = random_codes((3, 4, 9, 8), edges["x"], generator)
    assert torch.equal(run(depthwise, edges, codes), run(Conv("x", "y", dense, *fields), edges, codes))


@pytest.mark.parametrize("chunk", [1, 50, 1000])
def test_pieces_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    edges = {"x": edge(0.03, 99), "y": edge(0.3, 5)}
    codes = random_codes((5, 4, 9, 8), edges["x"], generator)
    nodes = [
        random_conv(generator, "x", "y", (6, 4, 3, 3), padding=1, stride=2),
        random_conv(generator, "x", "y", (4, 1, 3, 3), groups=4, dilation=2, padding=((0, 1), (2, 3))),
        random_linear(generator, "x", "y", 3, 8),
    ]
    whole = [run(node, edges, codes) for node in nodes]
    monkeypatch.setattr(layers, "CHUNK", chunk)
    monkeypatch.setattr(storage, "CHUNK", chunk)
    for node, wanted in zip(nodes, whole, strict=True):
        assert torch.equal(run(node, edges, codes), wanted)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_accumulator_that_leaves_int32_is_an_error(sign: int) -> None:
    edges = {"x": edge(1.0, 0), "y": edge(2.0**24, 128)}
    limit = 2**31 - 1 if sign > 0 else 2**31
    bias = int32(sign * (limit - 100))
    conv = Conv(
        "x",
        "y",
        torch.full((1, 1, 1, 1), sign, dtype=torch.int8),
        torch.ones(1),
        bias,
        (1, 1),
        ((0, 0),) * 2,
        (1, 1),
        1,
        0,
        255,
    )
    for node, shape in ((Linear("x", "y", conv.weight[0, 0], conv.weight_scale, bias, 0, 255), (1, 1)), (conv, (1, 1, 1, 1))):
        assert run(node, edges, torch.full(shape, 100)).item() == 128 + sign * 127 + (sign < 0) * -1
        with pytest.raises(ConversionError) as caught:
            run(node, edges, torch.full(shape, 101))
        assert str(caught.value).startswith(f"{type(node).__name__} 'y': an accumulator leaves int32\n  got:      sums of ")
        assert "-2147483648 … 2147483647" in str(caught.value)


def test_sums_that_leave_int32_only_on_the_way_are_exact() -> None:
    """2^31 on the way, brought back by the bias: the check is on what the accumulator ends with."""
    edges = {"x": edge(1.0, 0, (0, 65535)), "y": edge(2.0**20, 0)}
    node = Linear("x", "y", torch.full((1, 258), 127, dtype=torch.int8), torch.ones(1), int32(-(2**30)), 0, 255)
    got = run(node, edges, torch.full((1, 258), 65535))
    assert got.item() == min(255, round((258 * 127 * 65535 - 2**30) / 2**20))
    depthwise = random_conv(torch.Generator(), "x", "y", (1, 1, 20, 20))
    depthwise.weight.fill_(127)
    depthwise.bias.fill_(-(2**31))
    depthwise.weight_scale.fill_(0.125)
    assert 400 * 127 * 65535 > 2**31
    got = run(depthwise, edges, torch.full((1, 1, 20, 20), 65535))
    assert got.item() == round((400 * 127 * 65535 - 2**31) / 2**23) == 141


def test_the_float32_carrier_is_left_where_it_is_no_longer_exact() -> None:
    """518 products of 255 * 127 stay below 2^24, 519 do not; codes that are 2^8 from zero always need float64."""
    for inputs, codes, carrier in (
        (518, (0, 255), torch.float32),
        (519, (0, 255), torch.float64),
        (1, (0, 256), torch.float64),
        (1, (-255, 255), torch.float32),
    ):
        node = Linear("x", "y", torch.full((2, inputs), 127, dtype=torch.int8), torch.ones(1), int32(2**30, 0), 0, 255)
        assert layers._carrier(node, edge(1.0, 0, codes)) == carrier


def test_autocast_and_reduced_precision_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    edges = {"x": edge(0.03, 99), "y": edge(0.3, 5)}
    conv = random_conv(generator, "x", "y", (6, 4, 3, 3), padding=1)
    codes = random_codes((2, 4, 6, 6), edges["x"], generator)
    linear = random_linear(generator, "x", "y", 3, 6)
    wanted = [run(conv, edges, codes), run(linear, edges, codes)]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(conv, edges, codes), wanted[0])
        assert torch.equal(run(linear, edges, codes), wanted[1])
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(run(conv, edges, codes), wanted[0])
        assert torch.equal(run(linear, edges, codes), wanted[1])
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.alone
def test_threads_share_a_program() -> None:
    generator = torch.Generator().manual_seed(0)
    edges = {"x": edge(0.03, 99), "y": edge(0.3, 5)}
    node = random_conv(generator, "x", "y", (6, 4, 3, 3), padding=1)
    batches = [random_codes((2, 4, 12, 12), edges["x"], generator) for _ in range(8)]
    wanted = [run(node, edges, codes) for codes in batches]
    got: dict[int, Tensor] = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: run(node, edges, batches[i])})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], wanted[i]) for i in range(8))
