"""`QATPreparer`: the functions `prepare`, `convert` and `statistics` behind one object with a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from truequant.errors import SchemeError
from truequant.fake.statistics import Statistics, statistics
from truequant.integer import Int8Model
from truequant.planning import Plan, plan
from truequant.schemes import QConfig
from truequant.transform.conversion import convert
from truequant.transform.prepare import prepare


class QATPreparer:
    """Prepares, converts and describes models with one config.

    config: a `QConfig`, a preset's name, or None for "int8". Raises `SchemeError` for anything else.

    >>> import torch
    >>> preparer = QATPreparer("int8")
    >>> qat = preparer.prepare(nn.Linear(4, 2), torch.randn(3, 4))
    >>> _ = qat(torch.randn(8, 4))
    >>> preparer.convert(qat).ops()
    {'Dequantize': 1, 'Linear': 1, 'Quantize': 1}
    """

    def __init__(self, config: QConfig | str | None = None) -> None:
        if config is not None and not isinstance(config, (QConfig, str)):
            raise SchemeError("QATPreparer: no config", got=repr(config), expected="a QConfig, a preset's name, or None")
        self.config = QConfig.preset(config) if isinstance(config, str) else config or QConfig()

    def plan(self, model: nn.Module, example_inputs: Any) -> Plan:
        """What `prepare` would do."""
        return plan(model, example_inputs, self.config)

    def prepare(self, model: nn.Module, example_inputs: Any, *, inplace: bool = False) -> nn.Module:
        """The quantization-aware model (see `truequant.prepare`)."""
        return prepare(model, example_inputs, self.config, inplace=inplace)

    def convert(self, model: nn.Module) -> Int8Model:
        """The Int8 model (see `truequant.convert`)."""
        return convert(model)

    def statistics(
        self, model: nn.Module, batches: Iterable[Any] | None = None, *, inputs: Callable[[Any], Any] | None = None
    ) -> Statistics:
        """What each quantizer does (see `truequant.statistics`)."""
        return statistics(model, batches, inputs=inputs)

    def __repr__(self) -> str:
        return f"QATPreparer({self.config})"
