"""`QConfig`: what a whole model becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truequant.errors import SchemeError
from truequant.schemes.defaults import ACTIVATION_8, WEIGHT_8, Ends, Saturation
from truequant.schemes.dtypes import int8, integer_type
from truequant.schemes.fusions import Fusions
from truequant.schemes.granularity import PerChannel, PerTensor
from truequant.schemes.presets import NAMED, named
from truequant.schemes.rules import Rule
from truequant.schemes.scheme import QuantScheme
from truequant.schemes.strategies import Dynamic, Observation
from truequant.schemes.targets import ONNXRUNTIME, TARGETS, Target
from truequant.schemes.text import Described, described, described_by_file

if TYPE_CHECKING:
    from typing import Self


def is_dynamic(scheme: QuantScheme | None) -> bool:
    """Whether scales come from each token at run time."""
    return scheme is not None and isinstance(scheme.observer, Dynamic)


@dataclass(frozen=True, slots=True)
class QConfig:
    """Global schemes, exceptions, and the target.

    input, output: the model's own inputs and outputs, always 8 bits unless said otherwise; `output=None` returns the
        last layer's accumulators as float32.
    unroll_recurrent: write `nn.LSTM`, `nn.GRU` and `nn.RNN` out step by step, on integers, for sequences of the example's
        length; else the recurrence is a float island with quantized weights and input.
    saturation: what becomes of weights of 8 bits where CPUs of the target without VNNI could saturate the pairs of products
        that they add in int16. "narrow" takes codes in [-64, 64] there, which run at full speed, and keeps those of the scheme
        elsewhere; "unsigned" ships codes of 8 bits shifted by 128, exact too, at half the speed where VNNI is. A weight that a
        rule names keeps its scheme.
    ends: first and last layers keep these; `None` treats them as all others.
    wide_streams: whether residual streams in front of norms have 16 bits where the first range that is found is more than 8
        times that of their median channel; False keeps them at 8. A rule for such an edge wins.
    fusions: which ops share a training pass with the quantizer behind them; what is computed is the same (see `Fusions`).
    """

    weight: QuantScheme | None = WEIGHT_8
    activation: QuantScheme | None = ACTIVATION_8
    input: QuantScheme | None = ACTIVATION_8
    output: QuantScheme | None = ACTIVATION_8
    saturation: Saturation = "narrow"
    ends: Ends | None = None
    rules: tuple[Rule, ...] = ()
    target: Target = ONNXRUNTIME
    unroll_recurrent: bool = False
    fusions: Fusions = Fusions()
    wide_streams: bool = True

    def __post_init__(self) -> None:
        for field in ("weight", "activation", "input", "output"):
            value = getattr(self, field)
            if not (value is None or isinstance(value, QuantScheme)):
                raise SchemeError(f"QConfig: {field} is not a QuantScheme", got=repr(value), expected="a QuantScheme or None")
        if not isinstance(self.target, Target):
            raise SchemeError(
                "QConfig: target is not a Target", got=repr(self.target), expected="truequant.schemes.ONNXRUNTIME …"
            )
        if self.saturation not in ("narrow", "unsigned"):
            raise SchemeError("QConfig: unknown saturation", got=repr(self.saturation), expected="'narrow' or 'unsigned'")
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise SchemeError("QConfig: not a Rule", got=repr(rule), expected="Rule(selector, …)")

    @staticmethod
    def preset(name: str) -> QConfig:
        """The config of a name. "int8" is the default, `QConfig()`: the widest weights that run at full speed.

        int8, w8a8, w7a8, w8a8-per-tensor, w8a8-pow2, w4a8, w4a4, w3a3, w2a2, w1a1, and the last five with -all; for the linear
        layers of transformers w8a8-dynamic, w4a8-dynamic, w8a16, w4a16; with the grids of GGUF files w8a16-gguf, w4a16-gguf.
        """
        return QConfig(**named(name))

    @staticmethod
    def from_file(path: str | Path) -> QConfig:
        """The config that a TOML file describes (see `truequant.schemes.text`)."""
        return _made(described_by_file(path))

    def with_rules(self, *rules: Rule) -> Self:
        """A copy with further rules; later rules win."""
        return replace(self, rules=(*self.rules, *rules))

    def for_target(self, target: Target | str) -> Self:
        """A copy for another target, its global schemes changed to the nearest that the target can hold; rules stay.

        >>> QConfig().for_target("tensorrt").activation.dtype
        int8
        """
        if isinstance(target, str):
            if target not in TARGETS:
                raise SchemeError(f"no target {target!r}", got=repr(target), expected=", ".join(TARGETS))
            target = TARGETS[target]
        chosen = target

        def weight(scheme: QuantScheme | None) -> QuantScheme | None:
            if scheme is None:
                return None
            per_tensor = not chosen.per_channel or chosen.per_channel != ("layer",)
            granularity = PerTensor() if per_tensor and isinstance(scheme.granularity, PerChannel) else scheme.granularity
            dtype = scheme.dtype if scheme.dtype.bits in chosen.weight_bits else int8
            return replace(scheme, dtype=dtype, granularity=granularity)

        def activation(scheme: QuantScheme) -> QuantScheme:
            if is_dynamic(scheme):
                return scheme
            bits = scheme.dtype.bits if scheme.dtype.bits in chosen.activation_bits else 8
            signed = scheme.dtype.signed if chosen.activations == "any" else chosen.activations != "unsigned"
            symmetric = {"signed and symmetric": None, "signed": False, "unsigned": None}.get(
                chosen.activations, scheme.symmetric
            )
            return replace(scheme, dtype=integer_type(f"{'' if signed else 'u'}int{bits}"), symmetric=symmetric)

        ends = None if self.ends is None else replace(self.ends, weight=weight(self.ends.weight) or self.ends.weight)
        changed = replace(self, target=target, weight=weight(self.weight), ends=ends)
        return changed._map_activations(activation)

    def with_observer(self, observer: Observation) -> Self:
        """A copy whose activations, inputs and outputs are observed in this way; those scaled at run time stay so."""
        return self._map_activations(lambda scheme: scheme if is_dynamic(scheme) else replace(scheme, observer=observer))

    def _map_activations(self, change: Callable[[QuantScheme], QuantScheme]) -> Self:
        def on(scheme: QuantScheme | None) -> QuantScheme | None:
            return None if scheme is None else change(scheme)

        ends = None if self.ends is None else replace(self.ends, activation=change(self.ends.activation))
        return replace(self, activation=on(self.activation), input=on(self.input), output=on(self.output), ends=ends)


PRESETS: dict[str, QConfig] = {name: QConfig.preset(name) for name in NAMED}


def config_from_table(document: Mapping[str, Any], where: str) -> QConfig:
    """The config of a parsed table. Raises `SchemeError`, naming `where` and the key, for anything that is none."""
    return _made(described(document, where))


def _made(description: Described) -> QConfig:
    config = QConfig(**description.fields)
    if description.observer is not None:
        config = config.with_observer(description.observer)
    return config.with_rules(*description.rules)
