"""`verify`: the evaluated model against its Int8 program and the runtimes, edge by edge, on real data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from truequant.analysis.cases import Case
from truequant.analysis.compare import Codes, Tally, first_difference
from truequant.analysis.origins import origins
from truequant.analysis.report import REQUIREMENTS, Requirement, RuntimeReport, Verification
from truequant.analysis.runners import Runner, Subject, runner_of
from truequant.calibration import Bars
from truequant.errors import ArgumentError, ArgumentTypeError, VerificationError
from truequant.fake import evaluated, outermost
from truequant.integer import Int8Model, IntegerProgram, count_clipped, load
from truequant.integer.binding import bind, takes
from truequant.integer.nodes import FloatLinear
from truequant.numerics import InputClipping
from truequant.planning import arguments_of, items_of, tensors_of
from truequant.runtimes import RUNTIMES as DEPLOYED
from truequant.runtimes import ShippedFile, default_runtime, digest, machine, promises

Source = Int8Model | IntegerProgram | str | os.PathLike[str]


def verify(
    qat: nn.Module | None,
    int8: Source,
    batches: Iterable[Any],
    runtimes: Sequence[str] | None = None,
    *,
    inputs: Callable[[Any], Any] | None = None,
    metric: Callable[[Any, Any], float] | None = None,
    require: Requirement | None = None,
    cases: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Verification:
    """Compare every edge of the program and every output, batch by batch: memory does not grow with their number.

    qat: the prepared model, whose evaluation is what is expected; None takes the reference program's codes instead.
    int8: the converted model, the path of its `.tq` file, or of an ONNX file: then onnxruntime runs that file, and the program
        is the one in its metadata, or the `.tq` file of the same name beside it.
    batches: items, each a tensor, a tuple of positional inputs, or a dict of keyword inputs; of an `(x, y)` item a model
        with one input takes `x`. `inputs` maps an item to the inputs where that is not so.
    runtimes: "reference" is the integer program, "onnxruntime" the exported file: its inner edges are read from a copy
        whose integer kernels are the shipped file's, its outputs from the shipped file itself; "litert"
        likewise for programs for target "xnnpack". By default "reference" and the runtime of the program's target, or what
        `qat` None leaves to compare. A target that has no runtime here ("tensorrt") is reported as UNVERIFIED.
    metric: `metric(output, item)`, a mean over the examples of one batch, such as an accuracy; reported for what is expected
        and for each runtime.
    require: the least grade; "EXACT BETWEEN ISLANDS" lets float islands order their sums as they like.
    cases: a folder; each runtime that differs gets a file there with an input that shows it, for `replay`.
    progress: a bar on stderr; by default where that is a terminal.

    Raises `ArgumentError` for an unknown runtime or no batches, `FileError` for a damaged or hostile file, and
    `VerificationError`, which carries the report as `.verification`, where a runtime's grade is less than required.
    """
    if require is not None and require not in REQUIREMENTS:
        raise ArgumentError(f"verify: no requirement {require!r}", got=repr(require), expected=", ".join(REQUIREMENTS))
    subject = subject_of(int8)
    deployed = default_runtime(subject.int8.program)
    names = tuple(runtimes) if runtimes is not None else (deployed,) if qat is None else ("reference", deployed)
    runners = {name: runner_of(name, subject) for name in names}
    run = _Run(qat, subject, {name: r for name, r in runners.items() if r is not None}, metric)
    with Bars(progress) as bars:
        for item in bars.track(items_of(batches, "verify"), "verifying"):
            run.batch(item, *arguments_of(item, takes(subject.int8.program), inputs))
    if run.batches == 0:
        raise ArgumentError(
            "verify: there were no batches", expected="at least one item", fix="pass a list, or a loader that is not used up"
        )
    found = run.verification(runners)
    if cases is not None:
        _save(found, Path(cases))
    if require is not None:
        _require(found, require, cases)
    return found


def assert_exact(qat: nn.Module | None, int8: Source, batches: Iterable[Any], **options: Any) -> Verification:
    """`verify(…, require="EXACT")`, for tests: raises `VerificationError` with the table of what differs.

    options: those of `verify`; `require="EXACT BETWEEN ISLANDS"` for a model whose plan leaves float islands.
    """
    return verify(qat, int8, batches, **({"require": "EXACT"} | options))


def subject_of(int8: Source) -> Subject:
    """The model of a model, a program, or a file."""
    if isinstance(int8, Int8Model):
        return Subject(int8)
    if isinstance(int8, IntegerProgram):
        return Subject(Int8Model(int8))
    if not isinstance(int8, (str, os.PathLike)):
        raise ArgumentTypeError(
            "verify: not an Int8 model", got=type(int8).__name__, expected="tq.convert(qat), or the path of a .tq or .onnx file"
        )
    if Path(int8).suffix.lower() == ".onnx":
        file = ShippedFile(int8)
        return Subject(Int8Model(file.program), file)
    return Subject(load(int8))


class _Run:
    """The state between batches."""

    def __init__(
        self,
        qat: nn.Module | None,
        subject: Subject,
        runners: dict[str, Runner],
        metric: Callable[[Any, Any], float] | None,
    ) -> None:
        self.qat, self.subject, self.runners, self.measure = qat, subject, runners, metric
        self.program = subject.int8.program
        self.digest = digest(self.program)
        self.order = [node.output for node in self.program.nodes if node.output in self.program.edges]
        floats = sum(isinstance(node, FloatLinear) for node in self.program.nodes)
        self.tallies = {name: Tally(name, self.order, float_layers=floats) for name in runners}
        self.batches, self.examples, self.metric = 0, 0, 0.0
        self.clipping = InputClipping()

    def batch(self, item: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run one item through everything and count."""
        wanted, returned = self.expected(args, kwargs)
        outputs = tensors_of(returned)
        feeds = bind(self.program, args, kwargs)
        count_clipped(self.program, feeds, self.clipping)
        examples = max((int(t.shape[0]) for t in feeds.values() if t.dim()), default=1)
        if self.measure is not None:
            self.metric += examples * float(self.measure(returned, item))
        for name, runner in self.runners.items():
            tally = self.tallies[name]
            found, made = runner.codes(*args, **kwargs), runner.outputs(*args, **kwargs)
            values = tensors_of(made)
            if tally.codes(self.batches, wanted, found) | tally.values(outputs, values):
                pairs = dict(zip(self.program.output_names(), zip(outputs, values, strict=True), strict=True))
                tally.explain(origins(self.program, feeds, wanted, found, pairs, runner.floats))
                if tally.case is None and tally.first is not None:
                    tally.case = self.case(name, args, kwargs, examples, next(iter(tally.first.position), 0))
            if self.measure is not None:
                tally.metric += examples * float(self.measure(made, item))
        self.batches, self.examples = self.batches + 1, self.examples + examples

    def expected(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Codes, Any]:
        """Codes and outputs of the evaluated model, or of the reference program without one."""
        int8 = self.subject.int8
        if self.qat is None:
            return int8.codes(*args, **kwargs), int8(*args, **kwargs)
        if kwargs and args:
            raise ArgumentError("verify: an item with positional and keyword inputs", expected="one of the two")
        found, outputs = evaluated(outermost(self.qat), args, kwargs)
        missing = set(self.program.edges) - set(found)
        inner = {name for name in missing if "@" in name}
        if inner:  # steps of one op of the model, which its evaluation does not show
            reference = int8.codes(*args, **kwargs)
            found |= {name: reference[name] for name in inner}
        if missing - inner:
            raise ArgumentError(
                "verify: the program is not this model's",
                got=f"edges {sorted(missing - inner)[:5]} that its evaluation does not have",
                fix="verify(qat, tq.convert(qat), …)",
            )
        return found, outputs

    def case(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], examples: int, example: int) -> Case | None:
        """The first difference of one example alone where it shows one, else of the whole batch."""

        def alone(value: Any) -> Any:
            one = isinstance(value, Tensor) and value.dim() and value.shape[0] == examples
            return value[example : example + 1] if one else value

        dynamic = all(i.shape and i.shape[0] is None for i in self.program.inputs)
        for cut in ([alone] if dynamic and example < examples else []) + [lambda value: value]:
            some, more = tuple(map(cut, args)), {key: cut(value) for key, value in kwargs.items()}
            wanted, found = self.expected(some, more)[0], self.runners[name].codes(*some, **more)
            first = first_difference(self.order, wanted, found, 0)
            if first is not None:
                feeds = {key: value.detach().cpu() for key, value in bind(self.program, some, more).items()}
                want, have = wanted[first.edge].int(), found[first.edge].int()
                return Case(self.digest, name, first.edge, first.position, feeds, want, have)
        return None

    def verification(self, chosen: dict[str, Runner | None]) -> Verification:
        """The report of everything that ran, and of the targets that nothing here runs."""
        measured = self.measure is not None
        reports = {
            name: self.tallies[name].report(self.examples, measured, runner.floats) if runner else _unverified(name)
            for name, runner in chosen.items()
        }
        for name in reports:
            if name in DEPLOYED and not DEPLOYED[name].exact:
                reports[name] = replace(reports[name], promised=False, note="its arithmetic is that of floats")
        different = [name for name, report in reports.items() if report.origins]
        return Verification(
            reports,
            expected="reference program" if self.qat is None else "evaluated model",
            batches=self.batches, examples=self.examples, metric=self.metric / max(1, self.examples) if measured else None,
            program=self.digest, machine=machine(), promise=promises(self.program, tuple(reports), different),
            clipped_inputs=self.clipping.shares, remarks=tuple(self.clipping.remarks()),
        )  # fmt: skip


def _unverified(name: str) -> RuntimeReport:
    return RuntimeReport(note=f"no runtime of '{name}' runs here: its constraints were kept, its codes are not known")


def _save(found: Verification, folder: Path) -> None:
    made = {name: report.case for name, report in found.runtimes.items() if report.case is not None}
    for name, case in made.items():
        folder.mkdir(parents=True, exist_ok=True)
        case.save(folder / f"{name}.case")


def _require(found: Verification, require: Requirement, cases: str | os.PathLike[str] | None) -> None:
    for name, report in found.runtimes.items():
        if report.meets(require):
            continue
        fix = "verify(…, cases=FOLDER) keeps an input that shows it"
        if report.case is not None and cases is not None:
            fix = f"tq.replay({str(Path(cases) / f'{name}.case')!r}, …) shows it again"
        error = VerificationError(
            f"{name} does not compute what the {found.expected} computes",
            got=f"{report.grade}\n\n{found}\n",
            expected=require,
            fix=fix if report.grade != "UNVERIFIED" else f"verify without {name!r}: nothing here runs it",
        )
        error.verification = found
        raise error
