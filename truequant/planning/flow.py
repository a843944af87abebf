"""Who writes and who reads each value of a trace, before anything is decided about its calls."""

from __future__ import annotations

from truequant.planning.capture import Trace
from truequant.planning.ops import Role


class Flow:
    """Who writes and who reads each value, seen through what does nothing in evaluation."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.writer: dict[int, int] = {}
        self.readers: dict[int, list[int]] = {}
        self.alias: dict[int, int] = {}
        for index, call in enumerate(trace.calls):
            reads = [self.resolve(v) for v in call.inputs]
            if call.op.role is Role.IDENTITY and len(reads) == 1 and len(call.outputs) == 1:
                self.alias[call.outputs[0]] = reads[0]
                continue
            for value in dict.fromkeys(reads):
                self.readers.setdefault(value, []).append(index)
            for value in call.outputs:
                self.writer[value] = index
        self.outputs = {self.resolve(v) for v in trace.outputs}

    def resolve(self, value: int) -> int:
        return self.alias.get(value, value)

    def only_read_by(self, value: int, reader: int) -> bool:
        return self.readers.get(value) == [reader] and value not in self.outputs

    def shape(self, value: int) -> tuple[int, ...]:
        return self.trace.values[value].shape
