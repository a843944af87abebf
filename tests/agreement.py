"""Runs a program by the reference and by the oracle, and compares every tensor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.interpret import interpret
from tests.programs import program, values_of
from truequant.integer import IntegerProgram, execute
from truequant.integer.nodes import Edge, Node


def agree(model: IntegerProgram, **inputs: Tensor) -> dict[str, Tensor]:
    """Run both; every tensor equal. Returns the reference's."""
    names = {node.output for node in model.nodes}
    got = execute(model, inputs, names)
    wanted = interpret(model, inputs)
    for name in got:
        assert tuple(got[name].shape) == wanted[name].shape, name
        if name in model.edges:
            assert not got[name].is_floating_point()
            assert np.array_equal(got[name].numpy().astype(np.int64), wanted[name]), name
        else:
            assert got[name].dtype == torch.float32
            assert np.array_equal(got[name].numpy().view(np.int32), wanted[name].view(np.int32)), name
    return got


def one(node: Node, edges: dict[str, Edge], **codes: Tensor) -> Tensor:
    """The result of one node fed with these codes, after both agreed on it."""
    rank = next(iter(codes.values())).dim()
    model = program(node, edges, *codes, rank=rank)
    got = agree(model, **{f"{name}.value": values_of(tensor, edges[name]) for name, tensor in codes.items()})
    for name, tensor in codes.items():
        assert torch.equal(got[name].to(tensor.dtype), tensor)
    return got[node.output]
