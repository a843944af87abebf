"""`replay`: a saved case once more."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from truequant.analysis.cases import Case, read_case
from truequant.analysis.runners import runner_of
from truequant.analysis.verify import Source, subject_of
from truequant.errors import ArgumentError
from truequant.integer.binding import called_with
from truequant.runtimes import digest


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """case: what was saved; now: the codes that the runtime gives at that edge now; reference: those of the program."""

    case: Case
    now: Tensor
    reference: Tensor

    @property
    def reproduced(self) -> bool:
        """Whether the runtime still gives the codes that it gave when the case was saved."""
        return torch.equal(self.now, self.case.got)

    @property
    def different(self) -> int:
        """Codes of the edge that differ now from those expected."""
        return int((self.now != self.case.expected).sum())

    def __str__(self) -> str:
        where = f"edge '{self.case.edge}', position {self.case.position}"
        codes = (int(t[self.case.position]) for t in (self.case.expected, self.case.got, self.now, self.reference))
        expected, got, now, reference = codes
        text = f"{self.case.runtime}, {where}: expected {expected}, got {got}; now {now}, reference program {reference}"
        return f"{text}; {self.different} codes of the edge differ"


def replay(case: str | os.PathLike[str] | Case, int8: Source, runtime: str | None = None) -> Replay:
    """Run the input of a case that `verify(…, cases=FOLDER)` saved through the runtime that differed.

    case: its path, or the case itself. int8: as in `verify`: the same program, as a model or in a file.
    runtime: another runtime than the case's own.
    Raises `FileError` for a damaged case, `ArgumentError` where the program is another one than the case's.
    """
    case = case if isinstance(case, Case) else read_case(case)
    subject = subject_of(int8)
    program = subject.int8.program
    if digest(program) != case.program:
        raise ArgumentError(
            "replay: the case belongs to another program", got=digest(program)[:16], expected=case.program[:16],
            fix="pass the file that was verified",
        )  # fmt: skip
    if case.edge not in program.edges or set(case.inputs) != {i.name for i in program.inputs}:
        raise ArgumentError("replay: the case does not fit its program", got=f"edge '{case.edge}', inputs {list(case.inputs)}")
    runner = runner_of(runtime or case.runtime, subject)
    if runner is None:
        raise ArgumentError(f"replay: nothing here runs '{runtime or case.runtime}'")
    args, kwargs = called_with(program, case.inputs)
    now = runner.codes(*args, **kwargs)[case.edge].int()
    return Replay(case, now, subject.int8.codes(*args, **kwargs)[case.edge].int())
