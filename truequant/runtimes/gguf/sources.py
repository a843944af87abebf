"""What is written: tensors of a prepared model or an Int8 model by the names of transformers, as codes where they have some."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from truequant.errors import ArgumentTypeError, ExportError
from truequant.fake import QATModuleWrapper, integer_rows, integer_weight, quantizers
from truequant.integer import Int8Model, IntegerProgram
from truequant.integer.nodes import DynamicLinear, Island, WeightOnlyLinear
from truequant.runtimes.gguf.blocks import Coded
from truequant.transform.conversion import runtime_sites

Stored = Coded | Tensor
_HEAD = "lm_head"
_FLOATS = {"embedding.default": 2, "mul.Tensor": 1}
"""The float ops that read a weight of such a model, and the axes of it: tables, and the factors of norms."""
_CALL = re.compile(r"\.[a-z_0-9]+_[0-9]+$")
"""The end of the name of a function call: the module before it is the one whose forward calls."""


def tensors_of(model: nn.Module) -> dict[str, Stored]:
    """The weights by their names. `ArgumentTypeError` for a model that was not prepared, `ExportError` for a grid on edges."""
    if isinstance(model, Int8Model):
        return dict(_of_program(model.program))
    if not isinstance(model, QATModuleWrapper):
        raise ArgumentTypeError(
            "export_gguf writes a prepared model or an Int8 model", got=type(model).__name__, fix="tq.prepare(model, …)"
        )
    return _of_prepared(model)


@torch.no_grad()
def _of_prepared(model: nn.Module) -> dict[str, Stored]:
    own = {id(p) for _, quantizer in quantizers(model) for p in quantizer.parameters()}
    found: dict[str, Stored] = {
        name: p.detach() for name, p in model.named_parameters(remove_duplicate=False) if id(p) not in own
    }
    for site in runtime_sites(model).values():
        if site.weight is None:
            if site.quantizer is not None:
                raise _on_edges(site.plan.name)
            for name, quantizer in site.weights.items():
                found[f"{site.plan.owner}.{name}"] = _coded(*integer_rows(quantizer, getattr(site.owner, name)))
            continue
        if site.plan.action not in ("weight_only", "dynamic") or site.quantizer is not None:
            raise _on_edges(site.plan.name)
        weight = site.owner.weight
        assert isinstance(weight, Tensor)
        found[f"{site.plan.name}.weight"] = _coded(*integer_weight(site, weight))
    return found


def _coded(codes: Tensor, scale: Tensor) -> Coded:
    return Coded(codes.to(torch.int8).cpu().numpy(), scale.float().cpu().numpy())


def _of_program(program: IntegerProgram) -> Iterator[tuple[str, Stored]]:
    """A layer's weight has the layer's name; a table, or the factors of a norm, that of the module whose forward reads it."""
    if program.edges:
        raise _on_edges(next(iter(program.edges)))
    returned = program.output_names()
    for node in program.nodes:
        if isinstance(node, WeightOnlyLinear | DynamicLinear):
            layer = _HEAD if node.output in returned else node.output  # what is returned has the name that the model gives it
            yield f"{layer}.weight", Coded(node.weight.numpy(), node.weight_scale.numpy())
            if node.bias is not None:
                yield f"{layer}.bias", node.bias
        elif isinstance(node, Island):
            module = _CALL.sub("", node.output)
            own = not node.output.startswith("@")  # an op between the calls of a plan computes positions
            if own and node.op in _FLOATS and node.tensors and node.tensors[0].dim() == _FLOATS[node.op]:
                yield f"{module}.weight", _of_island(node)


def _of_island(node: Island) -> Stored:
    """The weight that a float op reads first: its values, or its codes."""
    if node.arguments[0] != json.dumps({"codes": [0, 1]}):
        return node.tensors[0]
    codes, scale = node.tensors[:2]
    return _coded(codes, scale if scale.dim() == 2 else scale.reshape(-1, 1).expand(len(codes), 1))


def _on_edges(where: str) -> ExportError:
    return ExportError(
        f"'{where}': llama.cpp keeps what is between layers in float, and this model has it on a grid",
        got="a quantized activation", expected="quantized weights alone", fix="QConfig.preset('w4a16-gguf'), before training",
    )  # fmt: skip


def float_array(tensor: Tensor) -> tuple[str, NDArray[Any]]:
    """The narrowest of F16, BF16 and F32 that holds all its values, and the values as that type's bytes."""
    values = tensor.detach().float().cpu().contiguous()
    if values.dim() < 2:
        return "F32", values.numpy()
    half = values.half()
    if torch.equal(half.float(), values):
        return "F16", half.numpy()
    short = values.bfloat16()
    if torch.equal(short.float(), values):
        return "BF16", short.view(torch.int16).numpy().view(np.uint8).reshape(*values.shape[:-1], -1)
    return "F32", values.numpy()
