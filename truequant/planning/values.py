"""What is known of the values of a traced forward while its calls are judged, one after another."""

from __future__ import annotations

from truequant.planning.capture import Trace


class Values:
    """The values of a trace. input_values: those that the model is given.

    on_codes: values that integer ops compute, also moved: what reads them reads codes at no cost.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.input_values = set(trace.inputs)
        self.on_codes: set[int] = set()
        self.without: frozenset[int] = frozenset()
        """Calls of attention, by index, that stay float."""

    def resolve(self, value: int) -> int:
        """The value that one is, seen through what does nothing in evaluation."""
        return value

    def is_float(self, value: int) -> bool:
        return self.trace.values[value].is_float

    def is_far(self, value: int) -> bool:
        """Whether a value holds numbers that no activation has. What is computed in integer is one, however large it grows."""
        return self.trace.values[value].far and value not in self.on_codes

    def rank(self, value: int) -> int:
        return len(self.trace.values[value].shape)

    def shape(self, value: int) -> tuple[int, ...]:
        return self.trace.values[value].shape
