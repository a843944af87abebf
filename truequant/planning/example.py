"""The example's forward, which runs the user's model on the user's inputs: an error there is theirs to understand."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from truequant.errors import PlanError, TruequantError


def run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`model(*args, **kwargs)`; `PlanError`, with what it was called with, where that raises."""
    try:
        return model(*args, **kwargs)
    except TruequantError:
        raise
    except Exception as error:
        raise PlanError(
            f"{type(model).__name__} raised on the example inputs, before anything was quantized",
            got=f"{type(error).__name__}: {_first_line(error)}{_where(error)}",
            expected=f"inputs that the float model takes; these were {_described(args, kwargs)}; {_parameters(model)}",
            fix=_fix(model, args, kwargs),
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


def _where(error: Exception) -> str:
    """The last line outside torch and this package, which is the model's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/torch/" not in frame.filename and "/truequant/" not in frame.filename:
            return f"\n            in {frame.filename}:{frame.lineno}: {frame.line}"
    return ""


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def _described(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{_dtype(value)} {tuple(value.shape)} on {value.device}"
        return repr(value)[:60] if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__

    return ", ".join([*map(one, args), *(f"{name}={one(value)}" for name, value in kwargs.items())]) or "none"


def _parameters(model: nn.Module) -> str:
    kinds = sorted({f"{_dtype(p)} on {p.device}" for p in model.parameters()})
    return f"its parameters are {' and '.join(kinds)}" if kinds else "it has no parameters"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _fix(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    inputs, weights = _tensors(args, kwargs), list(model.parameters())
    devices = _names(w.device for w in weights)
    if inputs and weights and (there := _names(x.device for x in inputs)) != devices:
        return f"bring model and inputs to one device: the inputs are on {', '.join(there)}, the model on {', '.join(devices)}"
    floats = _names(_dtype(w) for w in weights if w.is_floating_point())
    if len(floats) == 1 and (wrong := [x for x in inputs if x.is_floating_point() and _dtype(x) != floats[0]]):
        return f"inputs of the model's dtype: x.to(torch.{floats[0]}), not {_dtype(wrong[0])}"
    if any(_dtype(x) == "uint8" for x in inputs):
        return "images as the model was trained with: x.float() / 255, and its normalization"
    return "make model(*inputs) run alone first; axis 0 of each input is the batch, so that one example is x.unsqueeze(0)"


def _names(of: Iterable[object]) -> list[str]:
    return sorted({str(item) for item in of})
