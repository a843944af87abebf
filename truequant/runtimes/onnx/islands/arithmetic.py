"""Arithmetic of two or three operands, comparisons and questions as float islands in ONNX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from truequant.integer.nodes import Island
from truequant.runtimes.onnx.islands.arguments import Arguments
from truequant.runtimes.onnx.islands.steps import IslandWriter, Steps
from truequant.runtimes.onnx.writer import Writer

_LOGICAL = {"Add": "Or", "Mul": "And", "Max": "Or", "Min": "And"}
"""What arithmetic is on booleans."""


def binary(op: str, *, turned: bool = False) -> IslandWriter:
    """Of two tensors or a tensor and a number, both of the dtype to which torch promotes them; `turned` swaps the operands."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        result = writer.dtypes[node.output]
        operands = a.operands("0", "1", dtype=None if op in _COMPARISONS else result)
        if a.get("alpha", 1) != 1:
            scaled, alpha = writer.fresh(f"{node.output}.scaled"), np.array(a["alpha"], writer.numpy(result))
            operands[1] = writer.node("Mul", [operands[1], writer.constant(f"{node.output}.alpha", alpha)], scaled, name=scaled)
        kind = _LOGICAL.get(op, op) if result == torch.bool else op
        Steps(writer, node)(kind, operands[::-1] if turned else operands)

    return build


_COMPARISONS = frozenset(("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"))


def logical(op: str) -> IslandWriter:
    """`And`, `Or`, `Xor` or `Not` of truth values, whatever dtype they have; on integers, the op on their bits."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        keys = ("0",) if op == "Not" else ("0", "1")
        bits = writer.dtypes[node.output] != torch.bool
        if bits or node.op.startswith("logical"):
            operands = a.operands(*keys, dtype=writer.dtypes[node.output])
        else:
            operands = [a.tensor(key) for key in keys]
        Steps(writer, node)(f"Bitwise{op}" if bits else op, operands)

    return build


def unequal(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    step("Not", [step("Equal", a.operands("0", "1"), "equal")])


def division(op: str) -> IslandWriter:
    """Division that rounds, and what remains of it: `floor` (that of Python), `trunc`, or what `op` says of both.

    op: "div" (its rounding_mode says how), "floor_divide", "remainder" (the sign of the divisor), "fmod" (of the dividend).
    """

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step, dtype = Steps(writer, node), writer.dtypes[node.output]
        x, y = a.operands("0", "1", dtype=dtype)
        mode = {"div": a.get("rounding_mode"), "fmod": "trunc"}.get(op, "floor")
        if op == "div" and mode != "floor":
            if mode == "trunc" and dtype.is_floating_point:
                quotient = step("Div", [x, y], "quotient")
                whole = step("Floor", [step("Abs", [quotient], "size")], "whole")
                step("Mul", [whole, step("Sign", [quotient], "sign")])
            else:
                step("Div", [x, y])  # that of integers truncates
            return
        if not dtype.is_floating_point:
            rest = step("Mod", [x, y], "" if op in ("remainder", "fmod") else "rest", fmod=int(mode == "trunc"))
            if op in ("div", "floor_divide"):
                step("Div", [step("Sub", [x, rest], "multiple"), y])
            return
        rest = step("Mod", [x, y], "" if op == "fmod" else "rest", fmod=1)
        if op == "fmod":
            return
        zero = writer.constant(f"{node.output}.zero", np.array(0, writer.numpy(dtype)))
        there = step("Not", [step("Equal", [rest, zero], "none")], "some")
        signs = step("Xor", [step("Less", [rest, zero], "below"), step("Less", [y, zero], "negative")], "signs")
        wrong = step("And", [there, signs], "wrong")
        if op == "remainder":
            step("Where", [wrong, step("Add", [rest, y], "moved"), rest])
            return
        quotient = step("Div", [step("Sub", [x, rest], "multiple"), y], "quotient")
        step("Round", [step("Sub", [quotient, step("Cast", [wrong], "one", to=writer.element(dtype))], "floor")])

    return build


def threshold(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    x, limit, value = a.operands("0", "1", "2", dtype=writer.dtypes[node.output])
    step("Where", [step("LessOrEqual", [x, limit], "below"), value, x])


def lerp(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    x, y, weight = a.operands("0", "1", "2", dtype=writer.dtypes[node.output])
    step("Add", [x, step("Mul", [weight, step("Sub", [y, x], "difference")], "part")])


def scaled_sum(op: str) -> IslandWriter:
    """`beta * input + alpha * op(a, b)`: baddbmm, addmm, addcmul (whose factor is called value) and their kin."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step = Steps(writer, node)
        dtype = writer.dtypes[node.output]
        total, left, right = a.operands("0", "1", "2", dtype=dtype)

        def scaled(x: str, factor: Any, part: str) -> str:
            if factor == 1:
                return x
            return step("Mul", [x, writer.constant(f"{node.output}.{part}", np.array(factor, writer.numpy(dtype)))], part)

        product = scaled(step(op, [left, right], "product"), a.get("alpha", a.get("value", 1)), "alpha")
        if a.get("beta", 1) == 0:  # torch does not even read the input then
            step("Identity", [product])
            return
        step("Add", [scaled(total, a.get("beta", 1), "beta"), product])

    return build


def shifted(op: str, number: float, *, first: bool) -> IslandWriter:
    """`op(x) + number`, or `op(x + number)` if the sum comes first: expm1, log1p."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step = Steps(writer, node)
        if first:
            step(op, [step("Add", [a["0"], step.number(number)], "moved")])
        else:
            step("Add", [step(op, [a["0"]], "whole"), step.number(number)])

    return build


def log2(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    step("Div", [step("Log", [a["0"]], "natural"), step.number(math.log(2))])


def nan_to_num(writer: Writer, node: Island, a: Arguments) -> None:
    """Numbers for NaN, plus and minus infinity: 0 and the ends of float32 where none are said."""
    step, x = Steps(writer, node), a["0"]
    ends = np.finfo(np.float32)
    values = [a.get(k) if a.get(k) is not None else v for k, v in (("1", 0.0), ("2", ends.max), ("3", ends.min))]
    step_values = [step.number(v, f"for{i}") for i, v in enumerate(values)]
    x = step("Where", [step("IsNaN", [x], "nan"), step_values[0], x], "numbers")
    x = step("Where", [step("IsInf", [x], "above", detect_negative=0), step_values[1], x], "bounded")
    step("Where", [step("IsInf", [x], "below", detect_positive=0), step_values[2], x])


def some(op: str) -> IslandWriter:
    """Whether any (ReduceMax) or all (ReduceMin) are not zero."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step, x, rank = Steps(writer, node), a["0"], len(writer.shapes[a["0"]])
        if writer.dtypes.get(x, torch.float32) != torch.bool:
            x = step("Cast", [x], "true", to=writer.element(torch.bool))
        number = step("Cast", [x], "number", to=writer.element(torch.int32))
        axes = a.get("1")
        axes = list(range(rank)) if axes in (None, []) else [axes] if isinstance(axes, int) else axes
        keep = int(bool(a.get("2", False)))
        found = step(op, [number, writer.integers(f"{node.output}.axes", axes)], "found", keepdims=keep)
        step("Cast", [found], to=writer.element(torch.bool))

    return build
