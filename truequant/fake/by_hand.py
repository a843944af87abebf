"""What one layer is wrapped with by hand, without a plan of a whole model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from truequant.errors import ArgumentError
from truequant.fake.clock import Clock
from truequant.fake.inputs import InputQuantizer
from truequant.fake.limits import Limits
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.sites import RuntimeSite
from truequant.fake.weights import WeightQuantizer
from truequant.planning import Site, check_dynamic
from truequant.planning.actions import Action
from truequant.schemes import PerChannel, PerTensor, QuantScheme, is_dynamic

_INTEGER_LAYERS: dict[type[nn.Module], str] = {
    nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class ByHand:
    """The one site of a wrapped layer, its quantizers by slot, and those of them that its binding names again."""

    site: RuntimeSite
    quantizers: nn.ModuleDict
    limits: Limits
    inputs: tuple[InputQuantizer, ...]


def by_hand(
    module: nn.Module, clock: Clock, weight: QuantScheme | None, input: QuantScheme | None, output: QuantScheme | None
) -> ByHand:
    """Quantizers and site of a layer (see `QATModuleWrapper.wrap`), which it leaves as it is."""
    tensor = getattr(module, "weight", None)
    if weight is not None and not isinstance(tensor, Tensor):
        raise ArgumentError(
            f"{type(module).__name__} has no weight to quantize", got=f"weight={weight}", expected="weight=None"
        )
    name = type(module).__name__
    if input is not None and is_dynamic(input):
        if not isinstance(module, nn.Linear) or weight is None:
            raise ArgumentError(
                "wrap: scales of tokens are for linear layers with integer weights",
                got=f"{name}, weight={weight}, input={input}",
                expected="nn.Linear with weight=", fix="input=QuantScheme(uint8)",
            )  # fmt: skip
        check_dynamic(input, name)
    reads = None if is_dynamic(input) else _activation(input)
    weights, emits = _weight(weight, tensor), _activation(output)
    made = {slot: q for slot, q in (("input", reads), ("weight", weights), ("output", emits)) if q is not None}
    for slot, quantizer in made.items():
        quantizer.name, quantizer.clock = f"{name}.{slot}", clock
        quantizer.train(module.training)
        if isinstance(tensor, Tensor):
            quantizer.to(tensor.device)
    if weights is not None and tensor is not None:
        weights.track(tuple(tensor.shape))
        if tensor.device.type != "meta":
            weights.initialize(tensor)
    inputs: tuple[InputQuantizer, ...] = ()
    if reads is not None:  # the first input, by position or by torch's own name for it
        inputs = (InputQuantizer(0, 0, "input", reads), InputQuantizer("input", 0, "input", reads))
    site = RuntimeSite(_planned(module, weight, input), clock, module, (reads,), weights, emits, emits)
    return ByHand(site, nn.ModuleDict(made), Limits([q for q in made.values() if q.shift is not None]), inputs)


def _planned(module: nn.Module, weight: QuantScheme | None, input: QuantScheme | None) -> Site:
    """The site: an integer layer where one can hold these schemes, else what computes with quantized values."""
    name, dynamic = type(module).__name__, input if is_dynamic(input) else None
    reads = "input" if input is not None and dynamic is None else None
    op = next((op for kind, op in _INTEGER_LAYERS.items() if isinstance(module, kind)), None)
    action: Action = "float"
    if dynamic is not None:
        action = "dynamic"
    elif op is not None and weight is not None and input is not None and _deployable(weight, input):
        action = "layer"
    elif weight is not None:
        action = "weighted"
    return Site(
        name=name, owner="", op=op or name, ordinal=0, frame=(), leaf=True, action=action, reason="wrapped by hand",
        train_ordinal=0, reads=(reads,), dynamic=dynamic,
    )  # fmt: skip


def _activation(scheme: QuantScheme | None) -> FakeQuantize | None:
    if scheme is None:
        return None
    if is_dynamic(scheme):
        raise ArgumentError("wrap: a result has no scales of tokens", got=str(scheme), fix="output=QuantScheme(uint8), or None")
    if not isinstance(scheme.granularity, PerTensor):
        raise ArgumentError("wrap: inputs and outputs have one scale", got=str(scheme.granularity), expected="PerTensor()")
    quantizer = FakeQuantize(scheme)
    quantizer.owns_clock = False
    return quantizer


def _weight(scheme: QuantScheme | None, tensor: Tensor | None) -> WeightQuantizer | None:
    if scheme is None or tensor is None:
        return None
    match scheme.granularity:
        case PerChannel(axis):
            return WeightQuantizer(scheme, tensor.shape[axis])
        case PerTensor():
            return WeightQuantizer(scheme)
        case _:
            rows = tensor.flatten(1).shape
            return WeightQuantizer(scheme, (rows[0], -(-rows[1] // scheme.granularity.size)))


def _deployable(weight: QuantScheme, input: QuantScheme) -> bool:
    """Whether the integer layer can hold these: signed symmetric weights with one scale, or one an output channel."""
    granular = weight.granularity in (PerTensor(), PerChannel(0))
    return granular and weight.is_symmetric and weight.dtype.signed and max(weight.dtype.bits, input.dtype.bits) <= 8
