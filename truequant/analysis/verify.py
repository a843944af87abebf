"""`verify`: the evaluated model against its Int8 program and the runtimes, edge by edge, on real data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from truequant.analysis.report import Difference, RuntimeReport, Verification
from truequant.errors import ArgumentError
from truequant.fake import codes as codes_of
from truequant.fake import outermost
from truequant.integer import Int8Model
from truequant.planning import arguments_of, tensors_of
from truequant.runtimes import CompiledModel, EdgeReader

RUNTIMES = ("reference", "onnxruntime")


def verify(
    qat: nn.Module | None,
    int8: Int8Model,
    batches: Iterable[Any],
    runtimes: Sequence[str] = RUNTIMES,
    *,
    inputs: Callable[[Any], Any] | None = None,
) -> Verification:
    """Compare every edge of the program and every output, batch by batch, in bounded memory.

    qat: the prepared model, whose evaluation is what is expected; None takes the reference program's codes instead.
    batches: items, each a tensor, a tuple of positional inputs, or a dict of keyword inputs; of an `(x, y)` item a model
        with one input takes `x`. `inputs` maps an item to the inputs where that is not so.
    runtimes: "reference" is the integer program, "onnxruntime" the exported file: its inner edges are read from a copy
        whose integer kernels are the shipped file's, its outputs from the shipped file itself.

    Raises `ArgumentError` for an unknown runtime or no batches.
    """
    chosen = [_RUNTIMES[_known(name)](int8) for name in runtimes]
    tallies = {name: _Tally() for name in runtimes}
    count = 0
    for batch, item in enumerate(batches):
        args, kwargs = arguments_of(item, len(int8.program.inputs), inputs)
        expected_codes, expected_outputs = _expected(qat, int8, args, kwargs)
        for (name, tally), runtime in zip(tallies.items(), chosen, strict=True):
            tally.compare(batch, expected_codes, runtime.codes(*args, **kwargs), name)
            tally.compare_outputs(expected_outputs, runtime.outputs(*args, **kwargs))
        count += 1
    if count == 0:
        raise ArgumentError(
            "verify: there were no batches", expected="at least one item", fix="pass a list, or a loader that is not used up"
        )
    return Verification({name: tally.report for name, tally in tallies.items()})


class _Reference:
    def __init__(self, int8: Int8Model) -> None:
        self.codes, self.outputs = int8.codes, int8


class _Onnxruntime:
    def __init__(self, int8: Int8Model) -> None:
        self.codes, self.outputs = EdgeReader(int8.program).codes, CompiledModel(int8.program)


_RUNTIMES: dict[str, Callable[[Int8Model], Any]] = {"reference": _Reference, "onnxruntime": _Onnxruntime}


def _known(name: str) -> str:
    if name not in _RUNTIMES:
        raise ArgumentError(f"no runtime {name!r}", got=repr(name), expected=", ".join(_RUNTIMES))
    return name


def _expected(qat: nn.Module | None, int8: Int8Model, args: Any, kwargs: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    if qat is None:
        return int8.codes(*args, **kwargs), _leaves(int8(*args, **kwargs))
    model = outermost(qat)
    if kwargs and args:
        raise ArgumentError("verify: an item with positional and keyword inputs", expected="one of the two")
    found = codes_of(model, kwargs or args)
    modes = {m: m.training for m in model.modules()}
    try:
        for module in modes:
            module.training = False
        with torch.no_grad():
            outputs = _leaves(model(*args, **kwargs))
    finally:
        for module, mode in modes.items():
            module.training = mode
    missing = set(int8.program.edges) - set(found)
    inner = {name for name in missing if "@" in name}
    if inner:  # steps of one op of the model, which its evaluation does not show
        reference = int8.codes(*args, **kwargs)
        found |= {name: reference[name].to(torch.int16) for name in inner}
        missing -= inner
    if missing:
        raise ArgumentError(
            "verify: the program is not this model's",
            got=f"edges {sorted(missing)[:5]} that its evaluation does not have",
            fix="verify(qat, tq.convert(qat), …)",
        )
    return {name: found[name] for name in int8.program.edges}, outputs


def _leaves(outputs: Any) -> list[Tensor]:
    return tensors_of(outputs)


@dataclass
class _Tally:
    report: RuntimeReport = field(default_factory=RuntimeReport)

    def compare(self, batch: int, expected: dict[str, Tensor], got: dict[str, Tensor], runtime: str) -> None:
        """Every edge of one batch."""
        r = self.report
        by_edge, first = dict(r.by_edge), r.first_difference
        compared, different, largest = r.codes_compared, r.codes_different, r.max_difference
        for edge, want in expected.items():
            have = got[edge]
            compared += want.numel()
            if have.shape != want.shape:
                raise ArgumentError(
                    f"edge '{edge}' has another shape in {runtime}", got=tuple(have.shape), expected=tuple(want.shape)
                )
            distance = (have.to(torch.int32) - want.to(torch.int32)).abs()
            wrong = int((distance != 0).sum())
            if not wrong:
                continue
            by_edge[edge] = by_edge.get(edge, 0) + wrong
            different, largest = different + wrong, max(largest, int(distance.max()))
            if first is None:
                position = tuple(int(i) for i in distance.nonzero()[0])
                first = Difference(edge, batch, position, int(want[position]), int(have[position]))
        self.report = replace(
            r,
            codes_compared=compared,
            codes_different=different,
            max_difference=largest,
            first_difference=first,
            by_edge=by_edge,
        )

    def compare_outputs(self, expected: list[Tensor], got: Any) -> None:
        """The model's outputs, bit by bit, and the predictions of the first one."""
        different, changed = 0, 0
        for position, (want, have) in enumerate(zip(expected, _leaves(got), strict=True)):
            different += int((want != have).sum())
            if position == 0 and want.dim() >= 2:
                changed = int((want.argmax(-1) != have.argmax(-1)).sum())
        r = self.report
        self.report = replace(r, outputs_different=r.outputs_different + different, argmax_changed=r.argmax_changed + changed)
