"""What every method of post-training quantization is: a frozen value that knows when it acts and how."""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from torch import nn

from truequant.calibration.progress import Bars
from truequant.fake import FakeQuantize, QATModuleWrapper

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Stage(IntEnum):
    """When a method acts: on float weights, on ranges, or on weights whose inputs have their ranges."""

    EQUALIZE = 0
    RANGES = 1
    CORRECT = 2


@dataclass(frozen=True, eq=False)
class Work:
    """A prepared model, the inputs of all batches, and bars for what takes long."""

    model: QATModuleWrapper
    batches: tuple[Inputs, ...]
    bars: Bars

    @functools.cached_property
    def reference(self) -> nn.Module:
        """The float model as it was before any weight was rounded: a copy in evaluation whose quantizers pass values on.

        They are not switched off: attention would take its fast path then, which calls none of its layers.
        """
        reference: Any = copy.deepcopy(self.model)
        for module in reference.modules():
            module.training = False
            if isinstance(module, FakeQuantize):
                module.observing = False
        reference.binding.clock.state = "calibrating"
        return reference  # type: ignore[no-any-return]


class Method(ABC):
    """A step of `tq.calibrate(model, batches, method=…)`."""

    stage: ClassVar[Stage]

    @abstractmethod
    def apply(self, work: Work) -> None:
        """Change the model of `work`."""
