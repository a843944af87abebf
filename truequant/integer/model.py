"""`Int8Model`: an integer program that is called like the model it came from."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from truequant.errors import ArgumentError, ArgumentTypeError, ConversionError
from truequant.files import read_container, write_container
from truequant.integer.binding import bind
from truequant.integer.describe import describe
from truequant.integer.execute import execute
from truequant.integer.program import IntegerProgram
from truequant.integer.serialize import from_container, to_container
from truequant.integer.shapes import program_shapes
from truequant.integer.shares import Share, share
from truequant.planning import build


class Int8Model(nn.Module):
    """A model that computes with integers: int8 weights, int32 sums, codes between its nodes.

    Called like the model it was converted from, it returns the same structure. It has no parameters, trains nothing, and
    gives the same integers for any batch size, number of threads and device. `state_dict` holds the whole program under
    one key. ArgumentError where the inputs are not those of the signature; ConversionError where a sum leaves int32.

    >>> from truequant.integer import ProgramInput
    >>> from truequant.integer.nodes import Dequantize, Edge, Linear, Quantize
    >>> one = torch.tensor([[3, -2]], dtype=torch.int8), torch.tensor([0.5]), torch.tensor([1], dtype=torch.int32)
    >>> nodes = Quantize("x", "x.q"), Linear("x.q", "y.q", *one, 0, 255), Dequantize("y.q", "y")
    >>> edges = {"x.q": Edge(0.5, 128, 0, 255), "y.q": Edge(1.0, 10, 0, 255)}
    >>> int8 = Int8Model(IntegerProgram((ProgramInput("x", "float32", (None, 2)),), nodes, edges, "y", "onnxruntime"))
    >>> int8(torch.tensor([[2.0, -1.0]]))  # codes 132 and 126: (4 * 3 - 2 * -2 + 1) * 0.5 * 0.5 = 4.25
    tensor([[4.]])
    >>> int8.codes(torch.tensor([[2.0, -1.0]]))["y.q"]
    tensor([[14]], dtype=torch.uint8)
    >>> int8.ops()
    {'Dequantize': 1, 'Linear': 1, 'Quantize': 1}
    """

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__()
        if not isinstance(program, IntegerProgram):
            raise ArgumentTypeError(
                "Int8Model holds an integer program", got=type(program).__name__, fix="truequant.convert(qat)"
            )
        self.program = program
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = self._execute(args, kwargs, frozenset(self.program.output_names()))
        return build(self.program.outputs, values)

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The integers on every edge for these inputs, in the order in which they are computed."""
        return self._execute(args, kwargs, frozenset(self.program.edges))

    def ops(self) -> dict[str, int]:
        """How many nodes of each kind: the census."""
        return self.program.census()

    def share(self, *args: Any, **kwargs: Any) -> Share:
        """How much of what is computed for these inputs is computed on integers, and which float nodes write most.

        >>> import truequant as tq
        >>> model, x = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), torch.ones(2, 4)
        >>> print(tq.convert(tq.calibrate(tq.prepare(model, x), [x]).eval()).share(x))
        100.0% of 16 elements are computed on integers
        """
        return share(self.program, {name: tuple(tensor.shape) for name, tensor in bind(self.program, args, kwargs).items()})

    @property
    def size_bytes(self) -> int:
        """The bytes of the saved file."""
        with tempfile.TemporaryDirectory() as folder:
            return self.save(Path(folder) / "model.tq")

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write one file, atomically, and return its size in bytes. Equal models give equal bytes."""
        return write_container(path, *to_container(self.program))

    def train(self, mode: bool = True) -> Self:
        """As any module's; a warning where training is switched on, which changes nothing here."""
        if mode:
            warnings.warn(f"Int8Model.train(): {_NO_TRAINING}", stacklevel=2)
        return super().train(mode)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """None, and a warning: an optimizer of an Int8 model has nothing to train."""
        warnings.warn(f"Int8Model.parameters(): {_NO_TRAINING}", stacklevel=2)
        return super().parameters(recurse)

    def _execute(self, args: tuple[Any, ...], kwargs: dict[str, Any], keep: frozenset[str]) -> dict[str, Tensor]:
        inputs = bind(self.program, args, kwargs)
        try:
            program_shapes(self.program, {name: tuple(tensor.shape) for name, tensor in inputs.items()})
        except ConversionError as error:
            shapes = ", ".join(f"'{name}' {tuple(tensor.shape)}" for name, tensor in inputs.items())
            raise ArgumentError(
                f"the model cannot compute inputs of these shapes: {error.what}",
                got=f"{error.got}; inputs {shapes}",
                expected=error.expected,
            ) from error
        return execute(self.program, inputs, keep)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow `.to(device)` and `.cuda()`; `.half()` and `.double()` change nothing: integers have one precision."""
        device = fn(torch.empty(0)).device
        self.program = replace(self.program, nodes=tuple(node.to(device) for node in self.program.nodes))
        return self

    def get_extra_state(self) -> dict[str, object]:
        header, tensors = to_container(self.program)
        return {"header": header, "tensors": tensors}

    def set_extra_state(self, state: Any) -> None:
        self.program = from_container(state["header"], state["tensors"], "state_dict")

    def __repr__(self) -> str:
        return describe(self.program)


_NO_TRAINING = (
    "an Int8 model has no parameters and passes no gradients; train the prepared model (`qat`), then `tq.convert` it again"
)


def load(path: str | os.PathLike[str]) -> Int8Model:
    """The model of a file that `Int8Model.save` wrote. FileError for a file that is damaged, foreign or lies."""
    header, tensors = read_container(path)
    return Int8Model(from_container(header, tensors, f"'{path}'"))
