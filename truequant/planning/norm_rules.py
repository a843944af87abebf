"""Norms that take their statistics from what they read, as rules on codes: which calls are one, and of which kind.

A BatchNorm in evaluation is none of them: it is a map of each channel (see `truequant.planning.batch_norms`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from truequant.numerics import NormRule
from truequant.planning.capture import Call, Constant, Ref

_NAMES: dict[str, tuple[str, ...]] = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    "normalize": ("input", "p", "dim", "eps", "out"),
}  # fmt: skip
_TORCH = ("input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum", "eps", "cudnn_enabled")
"""What `torch.instance_norm` and its exported call take, all by position."""
_DEFAULTS: dict[str, Mapping[str, Any]] = {
    "layer_norm": {"weight": None, "bias": None, "eps": 1e-5},
    "rms_norm": {"weight": None, "bias": None, "eps": None},
    "group_norm": {"weight": None, "bias": None, "eps": 1e-5},
    "instance_norm": {"weight": None, "bias": None, "running_mean": None, "use_input_stats": True, "eps": 1e-5},
    "normalize": {"weight": None, "bias": None, "p": 2.0, "dim": 1, "eps": 1e-12, "out": None},
}  # fmt: skip
BY_ROW = "integer sums of a row, then float32 step by step"
"""Why a norm is computed on codes."""
NORM_OPS = frozenset(_NAMES)
"""Names of the ops that are norms by themselves."""


def norm_operands(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of one of `NORM_OPS` by name, `weight` and `bias` among them; None where there is none."""
    names = _TORCH if op == "instance_norm" and len(args) + len(kwargs) == len(_TORCH) else _NAMES[op]
    return {**_DEFAULTS[op], **dict(zip(names, args, strict=False)), **kwargs}


def norm_rule(call: Call, shape: Sequence[int]) -> NormRule | str:
    """The rule of a call of one of `NORM_OPS` on an activation of `shape`, or why it has none."""
    op, rank = call.op.name, len(shape)
    given = norm_operands(op, call.args, call.kwargs)
    if len(call.inputs) != 1 or not isinstance(given["input"], Ref):
        return "its gain or bias depends on the inputs"
    if not all(given[name] is None or isinstance(given[name], Constant) for name in ("weight", "bias")):
        return "its gain or bias is no tensor of the model"
    eps = torch.finfo(torch.float32).eps if given["eps"] is None else float(given["eps"])
    match op:
        case "group_norm" | "instance_norm":
            if op == "instance_norm" and not given["use_input_stats"]:
                return "it normalizes with running statistics"
            return NormRule("group", (), shape[1] if op == "instance_norm" else int(given["num_groups"]), eps)
        case "normalize":
            axis = given["dim"]
            if given["p"] != 2 or not isinstance(axis, int) or given["out"] is not None:
                return "no L2 norm along one axis"
            axes: tuple[int, ...] = (axis % rank - rank,)
        case _:
            axes = tuple(range(-len(given["normalized_shape"]), 0))
    if -rank in axes:
        return "it normalizes over the batch"
    return NormRule({"layer_norm": "layer", "rms_norm": "rms"}.get(op, "l2"), axes, 0, eps)  # type: ignore[arg-type]
