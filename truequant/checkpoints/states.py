"""Whether the tensors of a file fit a module: names, shapes, dtypes, and ranges that are ranges."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from truequant import numerics
from truequant.errors import ArgumentError, FileError
from truequant.fake import FakeQuantize, WeightQuantizer
from truequant.planning import WIDE_BITS, of_width

_FIX = "build the model with the class and the arguments that it was saved with"


def check_state(module: nn.Module, state: Mapping[str, Any], may_lack: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The names that the file lacks: those that begin with one of `may_lack`, and other names of tensors that it has.

    ArgumentError names what is missing, what is too much, and the first tensor of another shape or dtype.
    """
    live: dict[str, Any] = module.state_dict(keep_vars=True)
    known = {id(value) for name, value in live.items() if name in state}
    missing = [name for name in live if name not in state]
    lacking = [n for n in missing if not n.startswith(may_lack or ("\0",)) and id(live[n]) not in known]
    extra = [name for name in state if name not in live]
    if lacking or extra:
        raise _names_differ(lacking, extra, module, where)
    check_shapes(module, state, where)
    return tuple(missing)


def check_shapes(module: nn.Module, state: Mapping[str, Any], where: str) -> None:
    """ArgumentError for the first tensor, of those that module and file both have, of another shape or dtype."""
    for name, value in module.state_dict(keep_vars=True).items():
        if name in state:
            _check_tensor(name, value, state[name], where)


def _names_differ(lacking: list[str], extra: list[str], module: nn.Module, where: str) -> ArgumentError:
    fix = _FIX
    if any(".quantizers." in f".{name}" for name in extra):
        fix = "a state dict of a prepared model tells no plan: tq.prepare the model first, or save with tq.save_checkpoint"
    elif lacking and extra and (near := difflib.get_close_matches(lacking[0], extra, n=1, cutoff=0.5)):
        fix = f"{_FIX}; '{near[0][:200]}' in the file may be '{lacking[0][:200]}' in the model"
    return ArgumentError(
        f"{where}: it does not fit the {type(module).__name__} given: {len(lacking)} names missing, {len(extra)} unknown",
        got="; ".join(f"{kind}: {_some(names)}" for kind, names in (("missing", lacking), ("unknown", extra)) if names),
        expected="the names of the model's state_dict()",
        fix=fix,
    )


def _check_tensor(name: str, live: Any, stored: Any, where: str) -> None:
    if not isinstance(live, Tensor):
        if isinstance(stored, Tensor) and not name.endswith("_extra_state"):
            raise ArgumentError(f"{where}: '{name}' is no tensor in the model", got=f"shape {tuple(stored.shape)}", fix=_FIX)
        return
    if not isinstance(stored, Tensor):
        raise FileError(f"{where}: '{name[:200]}' is no tensor", got=type(stored).__name__, expected="a tensor")
    if stored.layout != torch.strided or stored.is_quantized or stored.is_meta:
        raise FileError(f"{where}: '{name[:200]}' is no tensor with strided data", got=f"{stored.dtype}, {stored.layout}")
    if stored.shape != live.shape:
        raise ArgumentError(
            f"{where}: '{name}' has another shape",
            got=f"{tuple(stored.shape)} in the file", expected=f"{tuple(live.shape)}, as in the model", fix=_FIX,
        )  # fmt: skip
    both_float = stored.dtype.is_floating_point and live.dtype.is_floating_point
    if stored.dtype != live.dtype and not both_float and not _was_flag(stored, live):
        raise ArgumentError(
            f"{where}: '{name}' has another dtype", got=f"{stored.dtype} in the file", expected=f"{live.dtype}, as in the model"
        )


def _was_flag(stored: Tensor, live: Tensor) -> bool:
    """Whether a file holds as yes or no what quantizers count now (see `truequant.fake.grid`)."""
    return stored.dtype == torch.bool and live.dtype == torch.int64 and live.dim() == 0


def check_dtypes(module: nn.Module, state: Mapping[str, Any], where: str) -> None:
    """ArgumentError where loading would round: a training that is resumed in another dtype is another training."""
    for name, live in module.state_dict().items():
        stored = state.get(name)
        if (
            isinstance(live, Tensor)
            and isinstance(stored, Tensor)
            and live.dtype != stored.dtype
            and not _was_flag(stored, live)
        ):
            raise ArgumentError(
                f"{where}: '{name}' has another dtype",
                got=f"{stored.dtype} in the file", expected=f"{live.dtype}, as in the model", fix=f"model.to({stored.dtype})",
            )  # fmt: skip


def check_quantizers(grids: Mapping[str, FakeQuantize | WeightQuantizer], state: Mapping[str, Any], where: str) -> None:
    """FileError for a scale, zero point or range that no quantizer can have."""
    for path, grid in grids.items():
        bits, planned = int(state[f"{path}.bits"]), grid.planned.dtype.bits
        stream = isinstance(grid, FakeQuantize) and grid.stream is not None
        if bits and not planned < bits <= 8 and not (stream and bits == WIDE_BITS):
            raise FileError(
                f"{where}: '{path}' has a width that cannot be", got=f"{bits} bits", expected=f"0, or {planned + 1} … 8"
            )
        scale, zero_point = state[f"{path}.scale"], state[f"{path}.zero_point"]
        inside = (scale >= numerics.MIN_SCALE) & (scale <= numerics.MAX_SCALE)
        if not bool(inside.all()):
            raise FileError(
                f"{where}: '{path}' has a scale that cannot be",
                got=f"scale {scale[~inside].flatten()[0].item()!r}", expected="a finite positive number",
                fix="take an earlier checkpoint: training had diverged when this one was written, or the file lies",
            )  # fmt: skip
        dtype = (of_width(grid.scheme, wide=bits == WIDE_BITS) if stream else grid.scheme).dtype
        low, high = (dtype.qmin, dtype.qmax) if isinstance(grid, FakeQuantize) else (0, 0)
        inside = (zero_point >= low) & (zero_point <= high) & (zero_point == zero_point.round())
        if not bool(inside.all()):
            raise FileError(
                f"{where}: '{path}' has a zero point that cannot be",
                got=f"zero point {zero_point[~inside].flatten()[0].item()!r}", expected=f"an integer of [{low}, {high}]",
            )  # fmt: skip
        for name, value in grid.state_dict().items():
            stored = state[f"{path}.{name}"]
            pending = name.rpartition(".")[2].startswith("pending")  # infinite where nothing is pending
            sound = torch.isnan(stored).logical_not() if pending else torch.isfinite(stored)
            if value.is_floating_point() and not bool(sound.all()):
                raise FileError(
                    f"{where}: '{path}.{name}' is not finite", got=repr(stored[~sound].flatten()[0].item()), expected="finite",
                    fix="take an earlier checkpoint: training had diverged when this one was written, or the file lies",
                )  # fmt: skip
            if name == "observer.counts" and bool((stored < 0).any()):
                raise FileError(f"{where}: '{path}.{name}' counts below zero", got=int(stored.min()), expected="counts")


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name[:120]}'" for name in names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
