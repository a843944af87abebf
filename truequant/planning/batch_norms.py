"""Which calls of `F.batch_norm` are a map of each channel that the model's own tensors say, whatever class calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from truequant.planning.capture import Call, Constant

_FUNCTIONAL = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_TORCH = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")
_DEFAULTS = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
TENSORS = ("running_mean", "running_var", "weight", "bias")


def norm_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `F.batch_norm` or `torch.batch_norm` by name; the latter has no defaults and takes nine."""
    names = _TORCH if len(args) + len(kwargs) == len(_TORCH) else _FUNCTIONAL
    return _DEFAULTS | dict(zip(names, args, strict=False)) | dict(kwargs)


def why_not_fixed(call: Call, leaf: bool, owner: nn.Module, root: nn.Module) -> str | None:
    """Why a call of `batch_norm` in evaluation is no fixed map of each channel; None where it is one.

    It is one where statistics, factor and bias are tensors that `owner` holds under the names that BatchNorm has for them:
    there the layer that the map is folded into finds them, before the call. leaf: whether `owner` is a BatchNorm of torch's.
    """
    given = norm_arguments(call.args, call.kwargs)
    if len(call.inputs) != 1:
        return "its factor or bias depends on the inputs"
    if given["training"] or not isinstance(given["running_mean"], Constant):
        return "it normalizes with the statistics of the batch in evaluation too"
    if leaf:
        return None
    for name in TENSORS:
        held, used = getattr(owner, name, None), given[name]
        if not (used is held is None or (isinstance(used, Constant) and _tensor(used, root) is held)):
            return f"its {name} is not the tensor that the module holds under this name"
    if getattr(owner, "eps", None) != given["eps"]:
        return "its eps is not the module's"
    return None


def _tensor(constant: Constant, root: nn.Module) -> Tensor | None:
    return attrgetter(constant.name)(root) if constant.name is not None else None
