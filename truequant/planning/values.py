"""What is known of the values of a traced forward while its calls are judged, one after another."""

from __future__ import annotations

from truequant.planning.capture import Constant, Trace, Value


class Values:
    """The values of a trace. input_values: those that the model is given.

    on_codes: values that integer ops compute, also moved: what reads them reads codes at no cost.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace, self.values = trace, list(trace.values)
        self.input_values = set(trace.inputs)
        self.on_codes: set[int] = set()
        self.exact: set[int] = set()
        """Floats on no grid that ops compute which round each number alone (see `elementwise`), also moved."""
        self.constants: set[int] = set()
        """Values that are none of the trace's: constants that an op joins to an activation."""
        self.without: frozenset[int] = frozenset()
        """Calls of attention, by index, that stay float."""

    def resolve(self, value: int) -> int:
        """The value that one is, seen through what does nothing in evaluation."""
        return value

    def is_float(self, value: int) -> bool:
        return self.values[value].is_float

    def is_far(self, value: int) -> bool:
        """Whether a value holds numbers that no activation has. What is computed in integer is one, however large it grows."""
        return self.values[value].far and value not in self.on_codes

    def add_constant(self, constant: Constant) -> int:
        """A new value for a constant that an op joins to an activation."""
        index = len(self.values)
        self.values.append(Value(index, constant.shape, constant.dtype))
        self.constants.add(index)
        return index

    def rank(self, value: int) -> int:
        return len(self.values[value].shape)

    def shape(self, value: int) -> tuple[int, ...]:
        return self.values[value].shape
