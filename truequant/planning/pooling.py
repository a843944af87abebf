"""Averages and the windows of poolings, by the arguments of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from truequant.numerics.pooling import pooled_length
from truequant.planning.actions import Action


def average_axes(op: str, args: Sequence[Any], kwargs: Mapping[str, Any], rank: int) -> tuple[int, ...] | None:
    """Axes, negative, of an average over whole axes; None where it is an average over windows."""
    if op == "mean":
        axes = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        if axes is None:
            axes = tuple(range(rank))
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        return tuple(sorted(a % rank - rank for a in axes))
    if op.startswith("adaptive"):
        n = int(op[-2])
        size = args[1] if len(args) > 1 else kwargs["output_size"]
        sizes = (size,) * n if isinstance(size, int) else tuple(size)
        return tuple(range(-n, 0)) if all(s == 1 for s in sizes) else None
    return None


def pool_arguments(op: str, args: Sequence[Any], kwargs: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any] | None:
    """Arguments of `avg_pool{1,2,3}d` by name, sizes as tuples, on an input of `shape`; of an adaptive pooling, those of the
    pooling with equal windows that it is, and None where it is none.
    """
    n = int(op[-2])
    if op.startswith("adaptive"):
        kernel = _windows(op, args[1] if len(args) > 1 else kwargs["output_size"], shape)
        if kernel is None:
            return None
        return {
            "kernel": kernel, "stride": kernel, "padding": (0,) * n, "ceil_mode": False, "count_include_pad": True,
            "divisor_override": None,
        }  # fmt: skip
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    found = dict(zip(names, args, strict=False)) | dict(kwargs)

    def sizes(value: Any) -> tuple[int, ...]:
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * n if len(values) == 1 else values

    kernel = sizes(found["kernel_size"])
    return {
        "kernel": kernel,
        "stride": sizes(found.get("stride")) if found.get("stride") not in (None, [], ()) else kernel,
        "padding": sizes(found.get("padding", 0)),
        "ceil_mode": bool(found.get("ceil_mode", False)),
        "count_include_pad": bool(found.get("count_include_pad", True)),
        "divisor_override": found.get("divisor_override"),
    }


def _windows(op: str, size: Any, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The window of an adaptive pooling whose windows are all alike; None where they differ."""
    n = int(op[-2])
    wanted = (size,) * n if isinstance(size, int) else tuple(size)
    wanted = tuple(have if want is None else want for want, have in zip(wanted, shape[-n:], strict=True))
    if any(want < 1 or have % want for want, have in zip(wanted, shape[-n:], strict=True)):
        return None
    return tuple(have // want for want, have in zip(wanted, shape[-n:], strict=True))


def of_windows(arguments: Mapping[str, Any], shape: Sequence[int]) -> tuple[Action, str]:
    """What quantization makes of an average over windows, and why."""
    if not uneven(arguments):
        return "pool", "integer layer of ones"
    if arguments["divisor_override"]:
        return "float", "its windows do not all hold the same number of elements, and are divided by one number"
    if arguments["count_include_pad"] and not _pads_apart(arguments, shape):
        return "float", "its last windows would begin in the padding"
    return "pool", "average of windows that do not all hold the same number of elements"


def _pads_apart(arguments: Mapping[str, Any], shape: Sequence[int]) -> bool:
    """Whether zeros around the input and a pooling without padding make the same windows."""
    fields = zip(shape[-len(arguments["kernel"]) :], *(arguments[k] for k in ("kernel", "stride", "padding")), strict=True)
    return all(pooled_length(n, k, s, p, 1, True) == pooled_length(n + 2 * p, k, s, 0, 1, True) for n, k, s, p in fields)


def uneven(arguments: Mapping[str, Any]) -> bool:
    """Whether the windows of an average pooling may hold different numbers of elements."""
    return bool(arguments["ceil_mode"] or (any(arguments["padding"]) and not arguments["count_include_pad"]))
