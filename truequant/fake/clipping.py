"""How much of its inputs a prepared model clips."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

from truequant.fake.control import quantizers
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.wrapper import QATModuleWrapper
from truequant.numerics import InputClipping


@contextlib.contextmanager
def input_clipping(root: QATModuleWrapper) -> Iterator[InputClipping]:
    """What the forwards of this context do to the inputs of a prepared model, in evaluation."""
    found = InputClipping()
    plan = root.binding.plan
    names = {spec.quantizer for spec in plan.inputs} if plan is not None else set()

    def look(quantizer: FakeQuantize, args: tuple[Tensor, ...]) -> None:
        if quantizer.is_calibrated and quantizer.scheme.dtype.bits > 1:
            limits = quantizer.scheme.qmin, quantizer.scheme.qmax
            found.add(quantizer.name, args[0], *quantizer.grid(args[0]), limits)

    inputs = [q for name, q in quantizers(root) if name in names and isinstance(q, FakeQuantize)]
    handles = [quantizer.register_forward_pre_hook(look) for quantizer in inputs]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
